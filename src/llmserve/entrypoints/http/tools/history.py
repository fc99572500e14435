"""Conversations that hold calls, for the chat template: as it takes them, or as text. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmserve.core.validation import mistyped, unlike
from llmserve.engines.call_formats import DEFAULT, CallFormat
from llmserve.entrypoints.http.errors import invalid
from llmserve.entrypoints.http.tools.use import ToolUse

Turn = dict[str, Any]


def checked_calls(calls: Any) -> list[dict[str, Any]]:
    """An assistant's `tool_calls` as templates take them, arguments as an object. ApiError 400
    names what is wrong."""
    if not isinstance(calls, list):
        raise invalid("messages", mistyped("tool_calls", "a list of calls", calls))
    return [_call(call) for call in calls]


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        kind = "objects with an id and a function that has a name"
        raise invalid("messages", mistyped("tool_calls", kind, call))
    id = call.get("id")
    if not isinstance(id, str | None):
        raise invalid("messages", mistyped("the id of a call", "a text", id))
    arguments = _arguments(function["name"], function.get("arguments"))
    named = {"name": function["name"], "arguments": arguments}
    return {"id": id or "", "type": "function", "function": named}


def _arguments(name: str, given: Any) -> dict[str, Any]:
    found = given
    if isinstance(given, str):
        try:
            found = json.loads(given) if given.strip() else {}
        except (ValueError, RecursionError):
            found = given
    if not isinstance(found, Mapping | None):
        said = f"the arguments of {name!r} in tool_calls"
        raise invalid("messages", unlike(said, "the text of a JSON object", given))
    return dict(found or {})


def rendered(turns: Sequence[Turn], use: ToolUse | None, template: str | None) -> list[Turn]:
    """The turns as the model's template takes them: calls and results as they are where it shows
    tools, else in the default format's text."""
    form = DEFAULT if use is None else use.format
    known = "tool_calls" in (template or "") if use is None else use.by_template
    if known:
        return [_shortened(turn, form) for turn in turns]
    return _described(_in_text(turns, form), use)


def _shortened(turn: Turn, form: CallFormat) -> Turn:
    """With ids as the format's template takes them."""
    if form.id_length is None:
        return turn
    found = dict(turn)
    if "tool_calls" in turn:
        calls = turn["tool_calls"]
        found["tool_calls"] = [{**call, "id": _id(call["id"], form.id_length)} for call in calls]
    if "tool_call_id" in turn:
        found["tool_call_id"] = _id(turn["tool_call_id"], form.id_length)
    return found


def _id(given: str, length: int) -> str:
    return re.sub(r"[^a-zA-Z0-9]", "", given)[-length:].rjust(length, "0")


def _in_text(turns: Sequence[Turn], form: CallFormat) -> list[Turn]:
    found: list[Turn] = []
    results = False
    for turn in turns:
        content = turn.get("content") or ""
        if turn["role"] in ("tool", "function"):
            said = f"<tool_response>\n{content}\n</tool_response>"
            if results:
                found[-1]["content"] += f"\n{said}"
            else:
                found.append({"role": "user", "content": said})
            results = True
            continue
        results = False
        if calls := turn.get("tool_calls"):
            written = form.written([call["function"] for call in calls])
            content = f"{content}\n{written}" if content else written
        found.append({"role": turn["role"], "content": content})
    return found


def _described(turns: list[Turn], use: ToolUse | None) -> list[Turn]:
    """With the tools in a system message, the first of the conversation."""
    if use is None:
        return turns
    said = _description(use)
    if turns and turns[0]["role"] == "system":
        first = {"role": "system", "content": f"{turns[0]['content']}\n\n{said}".lstrip()}
        return [first, *turns[1:]]
    return [{"role": "system", "content": said}, *turns]


def _description(use: ToolUse) -> str:
    tools = "\n".join(json.dumps(tool.described, ensure_ascii=False) for tool in use.choice.tools)
    form = use.format
    example = f'{{"name": NAME, "{form.arguments_key}": {{…}}}}'
    before = form.opening.partition("{")[0]
    return (
        "You may call these functions, which are described as JSON:\n"
        f"<tools>\n{tools}\n</tools>\n"
        "A call is written as the function's name and its arguments:\n"
        f"{form.begin}{before}{example}{form.end}"
    )
