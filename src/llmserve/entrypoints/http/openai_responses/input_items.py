"""Input items of /v1/responses, as messages of a chat. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmserve.core.validation import mistyped, not_one_of, unlike
from llmserve.entrypoints.http.errors import ApiError, invalid

_ROLES = ("user", "system", "developer", "assistant")
_SHARED = frozenset({"type", "id", "status"})
_FIELDS: Mapping[str, frozenset[str]] = {
    "message": _SHARED | {"role", "content", "phase"},
    "function_call": _SHARED | {"call_id", "name", "arguments"},
    "function_call_output": _SHARED | {"call_id", "output"},
    "reasoning": _SHARED | {"summary", "content", "encrypted_content"},
}
_PART_FIELDS = frozenset({"type", "text", "refusal", "annotations", "logprobs"})
_TEXTS = ("input_text", "output_text", "text")

Turn = dict[str, Any]


def chat_messages(instructions: Any, given: Any) -> list[Turn]:
    """ApiError 400 names `input` or `instructions`, and the item that cannot be read.

    A reasoning item is left out: a model is not given the reasoning of turns that are over.
    """
    turns: list[Turn] = []
    if instructions is not None:
        if not isinstance(instructions, str):
            said = mistyped("instructions", "a text", instructions)
            raise invalid("instructions", said)
        turns.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*turns, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise invalid("input", mistyped("input", "a text or a list of items", given))
    for index, item in enumerate(given):
        _add(turns, f"input[{index}]", item)
    return turns


def _add(turns: list[Turn], at: str, item: Any) -> None:
    if not isinstance(item, Mapping):
        raise invalid("input", mistyped(at, "an object", item))
    kind = item.get("type") or "message"
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise _unsupported(f"{at} of type {kind!r}", f"{', '.join(_FIELDS)} are")
    _check_names(at, item, _FIELDS[kind])
    match kind:
        case "message":
            turns.append(_message(at, item))
        case "function_call":
            _add_call(turns, at, item)
        case "function_call_output":
            content = _content(f"{at}.output", item.get("output"))
            called = _text(f"{at}.call_id", item.get("call_id"))
            turns.append({"role": "tool", "tool_call_id": called, "content": content})


def _message(at: str, item: Mapping[str, Any]) -> Turn:
    role = item.get("role")
    if role not in _ROLES:
        raise invalid("input", not_one_of(f"{at}.role", role, _ROLES))
    return {"role": role, "content": _content(f"{at}.content", item.get("content"))}


def _add_call(turns: list[Turn], at: str, item: Mapping[str, Any]) -> None:
    """Calls that follow each other, or the assistant's words, are of one turn in a chat."""
    function = {name: _text(f"{at}.{name}", item.get(name)) for name in ("name", "arguments")}
    called = _text(f"{at}.call_id", item.get("call_id"))
    if not turns or turns[-1]["role"] != "assistant":
        turns.append({"role": "assistant", "content": None})
    call = {"id": called, "type": "function", "function": function}
    turns[-1].setdefault("tool_calls", []).append(call)


def _content(at: str, given: Any) -> str | list[Turn]:
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise invalid("input", mistyped(at, "a text or a list of its parts", given))
    return [_part(f"{at}[{index}]", part) for index, part in enumerate(given)]


def _part(at: str, part: Any) -> Turn:
    if not isinstance(part, Mapping):
        raise invalid("input", mistyped(at, "an object", part))
    kind = part.get("type")
    if kind == "refusal":
        return {"type": "text", "text": _text(f"{at}.refusal", part.get("refusal"))}
    if kind not in _TEXTS:
        raise _unsupported(f"{at} of type {kind!r}", "input_text and output_text are")
    _check_names(at, part, _PART_FIELDS)
    return {"type": "text", "text": _text(f"{at}.text", part.get("text"))}


def _check_names(at: str, given: Mapping[str, Any], known: frozenset[str]) -> None:
    for name, value in given.items():
        if name not in known and value is not None:
            raise _unsupported(f"{at}.{name}", f"{', '.join(sorted(known))} are")


def _text(at: str, given: Any) -> str:
    if not isinstance(given, str):
        raise invalid("input", unlike(at, "a text", given))
    return given


def _unsupported(what: str, others: str) -> ApiError:
    return ApiError(
        400, f"{what} is not supported by this server; {others}", param="input",
        code="unsupported_parameter",
    )  # fmt: skip
