"""Bodies on their way to an engine's own application: what our routes check before they tokenise.

A value out of its bounds gets the same sentence on every engine, and blames the field that holds
it. What only the engine knows, as of images or its own options, is left to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from llmserve.core.bounds import SAMPLING
from llmserve.core.types import blame
from llmserve.core.validation import shown
from llmserve.engines.base import EngineInfo
from llmserve.entrypoints.http.errors import invalid
from llmserve.entrypoints.http.prompts import no_messages, prompts_of
from llmserve.entrypoints.http.protocol import (
    DRAWN,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    SamplingBody,
    check_shape,
    decode,
)
from llmserve.entrypoints.http.structured import check_one_form
from llmserve.serving.requests import (
    ContextExceeded,
    known_tokens,
    over_context,
    read_param,
    read_sampling,
)


class ForwardedMessage(msgspec.Struct):
    """A message of any role, with parts of any kind: the engine's template judges them."""

    role: str
    content: str | list[Any] | None = None


class ForwardedChat(ChatBody, kw_only=True):
    messages: list[ForwardedMessage]  # type: ignore[assignment]


class ForwardedCompletion(CompletionBody, kw_only=True):
    prompt: str | list[str | int | list[int]] | None = None  # type: ignore[assignment]
    prompt_embeds: Any = None


class ForwardedResponse(msgspec.Struct, kw_only=True):
    input: str | list[Any]
    stream: bool | None = None
    max_output_tokens: Any = None
    temperature: Any = None
    top_p: Any = None


def check_forwarded(path: str, raw: bytes, info: EngineInfo) -> None:
    """ApiError or ParamError for what can be said before the engine's application sees it."""
    if (check := _CHECKS.get(path)) is not None:
        check(raw, info)


def _chat(raw: bytes, info: EngineInfo) -> None:
    body = decode(raw, ForwardedChat)
    if not body.messages:
        raise no_messages()
    check_shape(body, 1)
    if body.top_logprobs is not None:
        _whole("top_logprobs", body.top_logprobs)
    _sampling(body, info, "messages")


def _completion(raw: bytes, info: EngineInfo) -> None:
    body = decode(raw, ForwardedCompletion)
    if body.prompt_embeds is None:
        check_shape(body, len(prompts_of(body)))
    if body.logprobs is not None:
        _whole("logprobs", body.logprobs)
    _sampling(body, info, "prompt")


def _sampling(body: SamplingBody, info: EngineInfo, main: str) -> None:
    check_one_form(body)
    asked, name = body.asked_tokens, body.sent_names.get("max_tokens", "max_tokens")
    limit = info.max_model_len
    if asked is None:
        asked = limit
    elif type(asked) is int and asked > limit:
        beyond = f"{name} asks for {shown(asked)}"
        raise ContextExceeded(main, over_context(limit, beyond))
    elif body.scores is None or type(asked) is not int or asked:  # 0 is for the prompt alone
        read_param("max_tokens", asked, called=name)
    given = {name: getattr(body, name) for name in DRAWN}
    given |= {"max_tokens": asked, "prompt_logprobs": body.scores}
    read_sampling({name: value for name, value in given.items() if value is not None})


def _response(raw: bytes, info: EngineInfo) -> None:
    body = decode(raw, ForwardedResponse)
    if not body.input:
        raise invalid("input", "the input is empty")
    if body.max_output_tokens is not None:
        read_param("max_tokens", body.max_output_tokens, called="max_output_tokens")
    for name in ("temperature", "top_p"):
        if (value := getattr(body, name)) is not None:
            _read(name, SAMPLING[name], value)


def _detokenize(raw: bytes, info: EngineInfo) -> None:
    known_tokens(decode(raw, DetokenizeBody).tokens, info, "tokens")


def _whole(name: str, value: Any) -> None:
    """A whole number: how many the engine allows is an option of its own."""
    if type(value) is not int or value < -1:
        read_param("logprobs", value, called=name)


def _read(name: str, read: Callable[[Any], Any], value: Any) -> None:
    try:
        read(value)
    except ValueError as error:
        raise blame(name, error) from None


_CHECKS: Mapping[str, Callable[[bytes, EngineInfo], None]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/responses": _response,
    "/detokenize": _detokenize,
}
