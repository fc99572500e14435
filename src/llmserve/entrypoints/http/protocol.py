"""OpenAI's request bodies, checked: from bytes to typed fields, or ApiError 400. Pure.

Fields this server has never heard of are ignored, as OpenAI's clients expect. Fields it knows and
cannot honour are refused, unless they ask for what happens anyway.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar

import msgspec

from llmserve.core.types import SamplingParams
from llmserve.entrypoints.http.caller import Claims
from llmserve.entrypoints.http.errors import ApiError
from llmserve.entrypoints.http.structured import structured

MAX_CHOICES = 128
"""The largest `n`, as at OpenAI."""
MAX_SEQUENCES = 1024
"""The most prompts × n of one HTTP request."""
COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions; a chat may fill the context."""

Body = TypeVar("Body")


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool | None = None


class SamplingBody(Claims, kw_only=True):
    """What both generation routes take; the second half are vLLM's names and our own."""

    model: str | None = None
    max_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    top_k: int | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    logit_bias: dict[int, float] | None = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None

    @property
    def choices(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def asked_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def default_tokens(self) -> int | None:
        """The longest reply when none is asked for; None for all that the context holds."""
        return None

    @property
    def alternatives(self) -> int | None:
        """How many logprobs beside each token's own; None for none at all."""
        return None


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[Any] | None = None


class ChatBody(SamplingBody, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def asked_tokens(self) -> int | None:
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(SamplingBody, kw_only=True):
    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None

    @property
    def default_tokens(self) -> int | None:
        return COMPLETION_MAX_TOKENS

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


class TokenizeBody(msgspec.Struct, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    tokens: list[int]
    model: str | None = None


_NOT_HERE: dict[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (True,),
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
    "guided_grammar": (),
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
    unheard = _read(raw, _NotHere)
    for name in _NOT_HERE:
        _refuse_unless_neutral(name, unheard)
    return _read(raw, kind)


def _read(raw: bytes, kind: type[Body]) -> Body:
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
    if not 1 <= body.choices <= MAX_CHOICES:
        raise _wrong("n", f"n must be within 1 and {MAX_CHOICES}, not {body.choices}")
    if prompts * body.choices > MAX_SEQUENCES:
        raise _wrong("prompt", f"one request may ask for at most {MAX_SEQUENCES} replies")
    if body.stream_options is not None and not body.stream:
        raise _wrong("stream_options", "stream_options is only for stream=true")
    if isinstance(body, ChatBody) and body.top_logprobs is not None and not body.logprobs:
        raise _wrong("top_logprobs", "top_logprobs needs logprobs=true")


def sampling(body: SamplingBody, max_tokens: int) -> SamplingParams:
    """The sampling of the first choice; ParamError where a value is out of its range."""
    given = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": 0 if body.top_k == -1 else body.top_k,  # vLLM's other word for all
        "seed": body.seed,
        "stop": (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        "stop_token_ids": tuple(body.stop_token_ids or ()),
        "ignore_eos": body.ignore_eos,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "repetition_penalty": body.repetition_penalty,
        "min_p": body.min_p,
        "min_tokens": body.min_tokens,
        "logit_bias": tuple((body.logit_bias or {}).items()),
        "structured_outputs": structured(body),
    }
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return SamplingParams(max_tokens=max_tokens, logprobs=body.alternatives, **fields)


def of_choice(first: SamplingParams, index: int) -> SamplingParams:
    """The same for choice `index`: a seed counts up, or all choices would be one reply."""
    if index == 0 or first.seed is None:
        return first
    return msgspec.structs.replace(first, seed=first.seed + index)


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")
