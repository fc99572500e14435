"""The body of POST /v1/responses: its fields in tables, and what a chat calls them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from llmserve.core.validation import mistyped
from llmserve.entrypoints.http.errors import ApiError, invalid
from llmserve.entrypoints.http.openai_responses.input_items import chat_messages
from llmserve.entrypoints.http.protocol import ChatBody, understood

ALIKE = frozenset({
    "model", "temperature", "top_p", "stream", "parallel_tool_calls", "seed", "stop", "top_k",
    "min_p", "min_tokens", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "ignore_eos", "stop_token_ids", "logit_bias", "structured_outputs", "skip_special_tokens",
    "include_stop_str_in_output", "priority", "tenant",
    "ttft_slo_ms", "chat_template_kwargs", "allow_special_tokens",
})  # fmt: skip
"""Fields that mean what they mean in a chat; the last lines are vLLM's and ours."""

READ = frozenset({
    "input", "instructions", "max_output_tokens", "text", "tools", "tool_choice", "top_logprobs",
    "include",
})  # fmt: skip
"""Fields that a chat has under another name or in another shape."""

INCLUDES = frozenset({
    "code_interpreter_call.outputs", "computer_call_output.output.image_url",
    "file_search_call.results", "message.input_image.image_url", "message.output_text.logprobs",
    "reasoning.encrypted_content", "web_search_call.action.sources", "web_search_call.results",
})  # fmt: skip
"""What may be included. All but the logprobs belongs to what no reply here holds."""

CHAT_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "prompt": "input",
    "response_format": "text",
    "logprobs": "top_logprobs",
}
"""Fields of a chat, and what was sent in their place."""


ResponsesFields = msgspec.defstruct(
    "ResponsesFields",
    [(name, Any, None) for name in sorted({*ALIKE, *READ})],
)
"""Every field that the route reads; `known_fields.py` has what becomes of others."""


class ResponsesBody(msgspec.Struct, frozen=True, kw_only=True):
    """A body, read."""

    given: Mapping[str, Any]
    """All its fields, as they were sent."""
    chat: ChatBody
    """What it asks for, said as a chat."""

    @property
    def tools(self) -> tuple[Any, Any, Any]:
        """tools, tool_choice and parallel_tool_calls, in the shapes of this route."""
        return tuple(map(self.given.get, ("tools", "tool_choice", "parallel_tool_calls")))  # type: ignore[return-value]  # three of them


def read_body(fields: Mapping[str, Any]) -> ResponsesBody:
    """ApiError 400 names the first field that cannot be taken."""
    chat: dict[str, Any] = {name: fields[name] for name in ALIKE if name in fields}
    chat |= {
        "messages": chat_messages(fields.get("instructions"), fields.get("input")),
        "max_completion_tokens": fields.get("max_output_tokens"),
        "response_format": _response_format(fields.get("text")),
        **_logprobs(fields),
    }
    return ResponsesBody(given=fields, chat=understood(chat, ChatBody))


def _response_format(text: Any) -> Any:
    """`text`, as chat's `response_format`."""
    if text is None:
        return None
    if not isinstance(text, Mapping):
        raise invalid("text", mistyped("text", "an object with a format", text))
    for name, value in text.items():
        if name not in ("format", "verbosity"):
            raise _unsupported("text", f"text.{name}")
        if name == "verbosity" and value not in (None, "medium"):
            raise _unsupported("text", f"text.verbosity {value!r}")
    match text.get("format"):
        case {"type": "json_schema", "schema": schema, **rest}:
            extra = {name: rest[name] for name in ("name", "strict", "description") if name in rest}
            return {"type": "json_schema", "json_schema": {**extra, "schema": schema}}
        case None | {"type": "text" | "json_object"} as plain:
            return plain
        case _:
            said = "text.format is of type text, json_object or json_schema, the last with a schema"
            raise invalid("text", said)


def _logprobs(fields: Mapping[str, Any]) -> dict[str, Any]:
    include, top = fields.get("include"), fields.get("top_logprobs")
    if include is not None and not isinstance(include, list):
        raise invalid("include", mistyped("include", "a list of names", include))
    for name in include or ():
        if not isinstance(name, str) or name not in INCLUDES:
            raise _unsupported("include", f"include of {name!r}")
    wanted = "message.output_text.logprobs" in (include or ())
    if not wanted and top in (None, 0):
        return {}
    return {"logprobs": True, "top_logprobs": top}


def _unsupported(param: str, what: str) -> ApiError:
    return ApiError(
        400, f"{what} is not supported by this server", param=param, code="unsupported_parameter"
    )


def renamed(error: ApiError) -> ApiError:
    """An error about a chat, about what was sent."""
    param = CHAT_NAMES.get(error.param or "", error.param)
    message = error.message
    for chat, sent in CHAT_NAMES.items():
        if chat not in ("messages", "prompt", "logprobs"):  # which are words, too
            message = message.replace(chat, sent)
    return ApiError(error.status, message, param=param, code=error.code, headers=error.headers)


