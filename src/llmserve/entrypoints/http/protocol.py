"""OpenAI's request bodies, checked: from bytes to typed fields, or ApiError 400. Pure.

Fields this server has never heard of are ignored, as OpenAI's clients expect. Fields it knows and
cannot honour are refused, unless they ask for what happens anyway.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar

import msgspec

from llmserve.core.types import SamplingParams, Structured
from llmserve.core.validation import whole
from llmserve.entrypoints.http.caller import Claims
from llmserve.entrypoints.http.errors import ApiError, invalid
from llmserve.entrypoints.http.structured import structured
from llmserve.serving.requests import read_param, read_sampling

MAX_SEQUENCES = 1024
"""The most prompts × n of one HTTP request."""
COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions; a chat may fill the context."""

_DRAWN = (
    "temperature", "top_p", "top_k", "seed", "stop", "stop_token_ids", "ignore_eos",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "min_p", "min_tokens",
    "logit_bias",
)  # fmt: skip
"""Fields of a body that are fields of SamplingParams."""

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
    add_special_tokens: bool | None = None

    @property
    def default_tokens(self) -> int | None:
        return COMPLETION_MAX_TOKENS

    @property
    def alternatives(self) -> Any:
        return self.logprobs


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


_NOT_HERE: dict[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "allow_special_tokens": (True,),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_logprobs": (),
    "skip_special_tokens": (True,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}
"""Fields that would change the answer and are not implemented, with the values that ask for
nothing; null is one for all of them."""
_NotHere = msgspec.defstruct("_NotHere", [(name, Any, None) for name in ("n", *_NOT_HERE)])


def decode(raw: bytes, kind: type[Body]) -> Body:
    """The body as `kind`, or ApiError 400 that names the field."""
    unheard = read(raw, _NotHere)
    for name in _NOT_HERE.keys() - set(getattr(kind, "__struct_fields__", ())):
        _refuse_unless_neutral(name, unheard)
    return read(raw, kind)


def read(raw: bytes, kind: type[Body]) -> Body:
    """Builds the fields of `kind` alone: others may hold a million values."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except RecursionError:
        raise ApiError(400, "the JSON body is nested too deeply", code="invalid_json") from None
    except msgspec.ValidationError as error:
        raise _mistyped(error) from None
    except ValueError as error:  # msgspec's own, and bytes that are not UTF-8
        raise ApiError(
            400, f"the body is not valid JSON: {error}", code="invalid_json"
        ) from None


def understood(fields: dict[str, Any], kind: type[Body]) -> Body:
    """The fields that `kind` has, of its types, or ApiError 400 that names the wrong one."""
    try:
        return msgspec.convert(fields, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise _mistyped(error) from None


def _mistyped(error: msgspec.ValidationError) -> ApiError:
    return ApiError(400, str(error), param=_param(str(error)), code="invalid_type")


def _refuse_unless_neutral(name: str, given: Any) -> None:
    value = getattr(given, name)
    if value is None or value in _NOT_HERE[name]:
        return
    if name == "best_of" and value == given.n:
        return
    raise ApiError(
        400, f"{name} is not supported by this server", param=name, code="unsupported_parameter"
    )


def _param(message: str) -> str | None:
    """The field a validation message is about: "… - at `$.stop[0]`" is about stop."""
    found = re.search(r"`\$\.(\w+)", message) or re.search(r"required field `(\w+)`", message)
    return found[1] if found else None


def check_shape(body: SamplingBody, prompts: int) -> None:
    """What can be said before anything is tokenised."""
    check_sequences(prompts * body.choices)
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "stream_options is only for stream=true")
    if isinstance(body, ChatBody) and body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs=true")


def check_sequences(count: int) -> None:
    """Of one HTTP request: prompts × n."""
    try:
        whole("prompts × n", count, 0, MAX_SEQUENCES)
    except ValueError as error:
        raise invalid("prompt", str(error)) from None


def sampling(
    body: SamplingBody, max_tokens: int, form: Structured | None = None
) -> SamplingParams:
    """The sampling of the first choice; ParamError where a value is out of its range. `form`: what
    the reply must match, where that is not what the body's schema says."""
    given = {name: getattr(body, name) for name in _DRAWN} | {
        "max_tokens": max_tokens,
        "logprobs": body.alternatives,
        "structured_outputs": structured(body) if form is None else form,
    }
    return read_sampling({name: value for name, value in given.items() if value is not None})


def of_choice(first: SamplingParams, index: int) -> SamplingParams:
    """The same for choice `index`: a seed counts up, or all choices would be one reply."""
    if index == 0 or first.seed is None:
        return first
    return msgspec.structs.replace(first, seed=first.seed + index)
