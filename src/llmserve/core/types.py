"""The types that all rooms share. Frozen, so that a value read once stays what it was.

Times are seconds on the session's clock (`core/clock.py`), which is monotonic and has no meaning
outside the session. Token counts are exact, by the engine's own tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, Literal

import msgspec

from llmserve.core import bounds
from llmserve.core.validation import MistypedValue, out_of, span

FinishReason = Literal["stop", "length", "abort", "timeout", "error"]
RowKind = Literal["prefill", "decode"]
WaitReason = Literal["cap", "token_budget", "kv", "policy", "tenant_limit", "batch", "prefix"]
"""Why a request waits: at most so many at once (cap), no room in the step's token budget, no free
KV block, another goes first by policy, its tenant's limit, a static batch that is closed, or
another computes most of its prompt just now, which it then copies (prefix)."""


class ParamError(ValueError):
    """A request's parameter is out of its range; `param` names it as the OpenAI API does."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.param, str(self))


class ParamTypeError(ParamError):
    """A request's parameter is of another kind than is taken."""


class Structured(msgspec.Struct, frozen=True):
    """The schema, grammar or pattern that a whole reply must match."""

    kind: Literal["json", "regex", "choice", "grammar"]
    text: str
    """A JSON schema, a regular expression, a JSON list of strings, or a Lark grammar."""
    strict: bool = True
    """Of a JSON schema: properties that it does not list do not come, unless it says that they may;
    False leaves that open."""

    @property
    def schema(self) -> dict[str, Any]:
        """Of kind json: the schema itself."""
        found = msgspec.json.decode(self.text)
        return found if isinstance(found, dict) else {} if found else {"enum": []}


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn. Names and meanings follow vLLM's SamplingParams.

    Built with a value that is none or out of its range (`core/bounds.py`) it raises ParamError.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """How many alternatives to report beside each chosen token; None for no logprobs at all."""
    prompt_logprobs: int | None = None
    """The same of each token of the prompt but its first. Only beside it `max_tokens` may be 0:
    the prompt is computed, and nothing is generated."""
    skip_special_tokens: bool = True
    """Whether special tokens are left out of the text."""
    include_stop_str_in_output: bool = False
    """Whether the text ends with the stop string or token that ended it."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_p: float = 0.0
    """Cuts tokens less likely than this share of the likeliest one's probability."""
    min_tokens: int = 0
    """No end token, stop token or stop string counts before so many; `structured_outputs` does."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, each with what is added to its logit."""
    structured_outputs: Structured | None = None
    """Only where the engine's info says that it supports "structured_outputs"."""

    def __post_init__(self) -> None:
        settle(self, bounds.SAMPLING)
        if not self.max_tokens and self.prompt_logprobs is None:
            try:
                bounds.BOUNDS["max_tokens"].read(self.max_tokens)
            except ValueError as error:
                raise blame("max_tokens", error) from None
        if self.min_tokens > self.max_tokens:
            most = span(0, self.max_tokens, "tokens (max_tokens)")
            raise blame("min_tokens", out_of("min_tokens", most, self.min_tokens))


def settle(struct: msgspec.Struct, readers: Mapping[str, Callable[[Any], Any]]) -> None:
    """Give its fields the form that their readers give them; ParamError names a wrong one. Every
    field has a default."""
    fields, defaults = struct.__struct_fields__, struct.__struct_defaults__
    given_now = _values_of(type(struct))(struct)
    for name, default, given in zip(fields, defaults, given_now, strict=True):
        if given is default or name not in readers:
            continue
        read = readers[name]
        try:
            found = read(given)
        except ValueError as error:
            raise blame(name, error) from None
        if found is not given:
            msgspec.structs.force_setattr(struct, name, found)


@cache
def _values_of(kind: type[msgspec.Struct]) -> Callable[[msgspec.Struct], tuple[Any, ...]]:
    """Reads all fields of such a struct at once; it has two or more."""
    return attrgetter(*kind.__struct_fields__)


def blame(param: str, error: ValueError) -> ParamError:
    """The same sentence, as an error of that parameter."""
    kind = ParamTypeError if isinstance(error, MistypedValue) else ParamError
    return kind(param, str(error))


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to generate. `n` choices of an HTTP request are n of these."""

    id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    arrival: float
    priority: int = 0
    """Lower goes first, as in vLLM."""
    tenant: str = "default"
    ttft_slo_ms: float | None = None
    """This request's own TTFT objective; None takes the knob `ttft_slo_ms`."""
    choices: int = 1
    """Sequences of one call that come together: admission asks the first for all of them, and
    the others, which have 0 here, are paid for."""
    payload: Any = None
    """An engine's own request object (`engines.Repeatable`), carried untouched."""


class TokenLogprob(msgspec.Struct, frozen=True):
    """One token with its natural-log probability and the likeliest alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int | None = None
    """Its place among all tokens, the likeliest being 1; known of a prompt's tokens alone."""


PromptLogprobs = tuple[TokenLogprob | None, ...]
"""Of each token of a prompt; None of the first, which nothing foretells."""


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine step (or more, when they were drained together) added to one request.

    `text` is only whole UTF-8 characters and never part of a stop string; it may be empty while
    tokens are held back, so `"".join(texts)` is the reply, and `token_ids` is always exact.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended the reply, if one did."""
    cached_tokens: int = 0
    """Prompt tokens that needed no computation; given once, with the first chunk."""
    prompt_logprobs: PromptLogprobs | None = None
    """Where they were asked for; given once, with the first chunk."""
    raw: Any = None


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """Chunks of one request that follow each other, at least one, as one."""
    last = chunks[-1]
    if len(chunks) == 1:
        return last
    asked = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    return Chunk(
        text="".join([chunk.text for chunk in chunks]),
        token_ids=tuple([token for chunk in chunks for token in chunk.token_ids]),
        logprobs=tuple([one for logprobs in asked for one in logprobs]) if asked else None,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        cached_tokens=chunks[0].cached_tokens,
        prompt_logprobs=chunks[0].prompt_logprobs,
    )


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a request ended. `error` is a sentence for the user when it did not end well."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    error: str | None = None
    ttft_s: float | None = None
    e2e_s: float = 0.0


class StepRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One request's part of one step: `tokens` computed, as a prefill chunk or as decode.

    There is one for each token, kept for long: the collector need not look at them.
    """

    request_id: str
    kind: RowKind
    tokens: int


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One engine step, none omitted: indices count up by one from 0 per engine start."""

    index: int
    start_s: float
    duration_s: float
    rows: tuple[StepRow, ...]
    running: int
    """Requests that hold KV when the step ends."""
    waiting: int
    kv_used_tokens: int
    """Tokens of KV room taken, whole blocks counted."""
    kv_capacity_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    preempted: tuple[str, ...] = ()
    wait_reasons: tuple[tuple[str, WaitReason], ...] = ()
    """Waiting requests whose reason for waiting changed in this step."""
    satisfied: tuple[str, ...] = ()
    """Lowered caps that the running set fits for the first time in this step."""
    cached_tokens: int = 0
    """Prompt tokens of the requests admitted in this step whose KV was there already."""
    draft_tokens: int = 0
    """Tokens that speculation proposed and this step checked; counted in `rows` too."""
    accepted_tokens: int = 0
    """Those of them that stood."""

    @property
    def computed_tokens(self) -> int:
        return sum([row.tokens for row in self.rows])

    @property
    def prefill_tokens(self) -> int:
        return sum([row.tokens for row in self.rows if row.kind == "prefill"])

    @property
    def decode_tokens(self) -> int:
        return self.computed_tokens - self.prefill_tokens
