"""OpenAI's request bodies, checked: from bytes to typed fields, or ApiError 400. Pure.

Fields that no struct here has are judged before (`fields.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Literal, TypeVar

import msgspec

from llmserve.core.types import SamplingParams, Structured
from llmserve.core.validation import Bounds
from llmserve.entrypoints.http.caller import Claims
from llmserve.entrypoints.http.errors import invalid
from llmserve.entrypoints.http.objects import mistyped, not_json, too_deep
from llmserve.entrypoints.http.structured import structured
from llmserve.entrypoints.http.token_texts import TokenTexts
from llmserve.serving.requests import read_param, read_sampling

MAX_SEQUENCES = 1024
"""The most prompts × n of one HTTP request."""
COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions; a chat may fill the context."""

DRAWN = (
    "temperature", "top_p", "top_k", "seed", "stop", "stop_token_ids", "ignore_eos",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "min_p", "min_tokens",
    "logit_bias", "skip_special_tokens", "include_stop_str_in_output",
)  # fmt: skip
"""Fields of a body that are fields of SamplingParams."""
_drawn = attrgetter(*DRAWN)
_SEQUENCES = Bounds("prompts × n", 0, MAX_SEQUENCES)

Body = TypeVar("Body")


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """vLLM's: what has been used so far, in every event."""
    include_obfuscation: bool | None = None
    """OpenAI's padding of events, which has no effect on them here."""


class SamplingBody(Claims, kw_only=True):
    """What both generation routes take; the second half are vLLM's names and our own.

    `Any` is what `core/bounds.py` reads, as of a cell: one sentence says what is wrong with it.
    """

    model: str | None = None
    max_tokens: Any = None
    n: Any = None
    temperature: Any = None
    top_p: Any = None
    seed: Any = None
    stop: Any = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Any = None
    frequency_penalty: Any = None

    top_k: Any = None
    repetition_penalty: Any = None
    ignore_eos: Any = None
    stop_token_ids: Any = None
    min_p: Any = None
    min_tokens: Any = None
    logit_bias: Any = None
    prompt_logprobs: Any = None
    skip_special_tokens: Any = None
    include_stop_str_in_output: Any = None
    return_tokens_as_token_ids: bool | None = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None

    @property
    def choices(self) -> int:
        """ParamError where `n` is none that is allowed."""
        return 1 if self.n is None else read_param("n", self.n)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def sent_names(self) -> Mapping[str, str]:
        """Fields of SamplingParams that the body has under another name, with that name."""
        return {}

    @property
    def continuous_usage(self) -> bool:
        options = self.stream_options
        return options is not None and bool(
            self.stream and options.include_usage and options.continuous_usage_stats
        )

    @property
    def asked_tokens(self) -> Any:
        return self.max_tokens

    @property
    def default_tokens(self) -> int | None:
        """The longest reply when none is asked for; None for all that the context holds."""
        return None

    @property
    def alternatives(self) -> Any:
        """How many logprobs beside each token's own; None for none at all."""
        return None

    @property
    def scores(self) -> Any:
        """The same of the prompt's tokens."""
        return self.prompt_logprobs


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    tool_calls: Any = None
    """An assistant's calls, of which `tools/history.py` reads each."""
    tool_call_id: str | None = None
    """Which call a tool's message answers."""
    name: str | None = None


class ChatBody(SamplingBody, kw_only=True):
    messages: list[Message]
    max_completion_tokens: Any = None
    logprobs: bool | None = None
    top_logprobs: Any = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    allow_special_tokens: bool | None = None

    @property
    def sent_names(self) -> Mapping[str, str]:
        newer = self.max_completion_tokens
        return {
            "logprobs": "top_logprobs",
            "max_tokens": "max_tokens" if newer is None else "max_completion_tokens",
        }

    @property
    def asked_tokens(self) -> Any:
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer

    @property
    def alternatives(self) -> Any:
        if not self.logprobs:
            return None
        return 0 if self.top_logprobs is None else self.top_logprobs


class CompletionBody(SamplingBody, kw_only=True):
    prompt: str | list[str | int | list[int]]
    logprobs: Any = None
    echo: bool | None = None
    add_special_tokens: bool | None = None

    @property
    def default_tokens(self) -> int | None:
        return COMPLETION_MAX_TOKENS

    @property
    def alternatives(self) -> Any:
        return self.logprobs

    @property
    def scores(self) -> Any:
        """With `echo` the prompt's tokens have what the reply's have. No reply at all is asked of
        the engine as log-probabilities of the prompt."""
        if self.prompt_logprobs is not None or not self.echo:
            return self.prompt_logprobs
        return 0 if self.logprobs is None and self.max_tokens == 0 else self.logprobs


class TokenizeBody(msgspec.Struct, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: Any = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    allow_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    tokens: list[int]
    model: str | None = None


def decode(raw: bytes, kind: type[Body]) -> Body:
    """The body as `kind`, or ApiError 400 that names the field. Builds the fields of `kind` alone:
    others may hold a million values."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except RecursionError:
        raise too_deep() from None
    except msgspec.ValidationError as error:
        raise mistyped(error) from None
    except ValueError as error:  # msgspec's own, and bytes that are not UTF-8
        raise not_json(error) from None


def understood(fields: dict[str, Any], kind: type[Body]) -> Body:
    """The fields that `kind` has, of its types, or ApiError 400 that names the wrong one."""
    try:
        return msgspec.convert(fields, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise mistyped(error) from None


def check_shape(body: SamplingBody, prompts: int) -> None:
    """What can be said before anything is tokenised."""
    check_sequences(prompts * body.choices)
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "stream_options is only for stream=true")
    if isinstance(body, ChatBody) and not body.logprobs:
        top = body.top_logprobs
        if top is not None and (type(top) is not int or top != 0):
            raise invalid("top_logprobs", "top_logprobs needs logprobs=true")
    if body.stream and body.prompt_logprobs is not None:
        raise invalid("prompt_logprobs", "prompt_logprobs come with a whole answer, not a stream")


def check_sequences(count: int) -> None:
    """Of one HTTP request: prompts × n."""
    try:
        _SEQUENCES.read(count)
    except ValueError as error:
        raise invalid("prompt", str(error)) from None


def sampling(
    body: SamplingBody, max_tokens: int, form: Structured | None = None
) -> SamplingParams:
    """The sampling of the first choice; ParamError where a value is out of its range. `form`: what
    the reply must match, where that is not what the body's schema says."""
    drawn = zip(DRAWN, _drawn(body), strict=True)
    given = {name: value for name, value in drawn if value is not None}
    given["max_tokens"] = max_tokens
    if (logprobs := body.alternatives) is not None:
        given["logprobs"] = read_param("logprobs", logprobs, body.sent_names.get("logprobs"))
    if (scores := body.scores) is not None:
        given["prompt_logprobs"] = scores
    if form is not None or (form := structured(body)) is not None:
        given["structured_outputs"] = form
    return read_sampling(given)


def texts_of(texts: TokenTexts, body: SamplingBody, sampling: SamplingParams) -> TokenTexts:
    """Tokens as this answer is to write them."""
    return texts.of_kind(
        special=not sampling.skip_special_tokens, as_ids=bool(body.return_tokens_as_token_ids)
    )


def of_choice(first: SamplingParams, index: int) -> SamplingParams:
    """The same for choice `index`: a seed counts up, or all choices would be one reply."""
    if index == 0 or first.seed is None:
        return first
    return msgspec.structs.replace(first, seed=first.seed + index)
