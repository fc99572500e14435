"""Calls in the answers of /v1/chat/completions: deltas of a stream, and a whole message."""

from __future__ import annotations

from typing import Any

from llmserve.entrypoints.http.tools.parser import (
    ArgumentsDelta,
    CallBegun,
    CallEnded,
    CallEvent,
    ReplyParser,
    TextDelta,
)


def deltas(events: list[CallEvent]) -> list[dict[str, Any]]:
    """What a stream sends for them, in order."""
    found: list[dict[str, Any]] = []
    for event in events:
        match event:
            case TextDelta(text):
                found.append({"content": text})
            case CallBegun(index, id, name):
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": id, "type": "function", "function": function}
                found.append({"tool_calls": [call]})
            case ArgumentsDelta(index, text):
                found.append({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            case CallEnded():
                pass
    return found


def read_whole(parser: ReplyParser, text: str) -> dict[str, Any]:
    """The fields of a whole message; arguments that were cut off are as far as they came."""
    content = ""
    calls: list[dict[str, Any]] = []
    for event in parser.push(text) + parser.finish():
        match event:
            case TextDelta(text):
                content += text
            case CallBegun(_, id, name):
                function = {"name": name, "arguments": ""}
                calls.append({"id": id, "type": "function", "function": function})
            case ArgumentsDelta(index, text):
                calls[index]["function"]["arguments"] += text
            case CallEnded():
                pass
    if not calls and not parser.calls_only:
        return {"content": content}
    return {"content": content or None, **({"tool_calls": calls} if calls else {})}
