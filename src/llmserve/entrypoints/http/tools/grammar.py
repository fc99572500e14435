"""What a reply with tools must match, as a grammar for llguidance: free text up to the mark of a
call, and from there nothing but calls that fit their tools' schemas. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from llmserve.core.types import Structured
from llmserve.engines.call_formats import CallFormat
from llmserve.engines.guided.closed_schemas import closed, readable
from llmserve.engines.guided.grammars import JSON_STYLE
from llmserve.entrypoints.http.tools.choice import Tool, ToolChoice


class MarkToken(msgspec.Struct, frozen=True):
    """A mark of a format that is one token."""

    text: str
    token: int
    silent: bool
    """Whether the reply's text lacks it."""


MarkTokens = tuple[MarkToken, ...]


def reply_grammar(
    choice: ToolChoice, form: CallFormat, answer: Structured | None = None, marks: MarkTokens = ()
) -> str:
    """Lark text. `answer`: the JSON schema of a reply that calls nothing, where it has one.
    RecursionError where a schema is nested too deeply."""
    tools = choice.callable
    several = form.several and choice.parallel
    before = form.opening.partition("{")[0]
    more = f"({_text(form.between, marks)} call)*" if several else ""
    rules = [
        f"calls: {_text(before)} call {more} {_text(form.end, marks)}",
        "call: " + " | ".join(f"call_{index}" for index in range(len(tools))),
        *(f"call_{index}: {_call(tool, form)}" for index, tool in enumerate(tools)),
    ]
    return "\n".join([*_start(choice, form, answer, marks), *rules]) + "\n"


def _start(
    choice: ToolChoice, form: CallFormat, answer: Structured | None, marks: MarkTokens
) -> list[str]:
    begin = _text(form.begin, marks)
    if choice.mode == "required":
        return [f"start: {begin} calls"]
    if answer is not None:
        return [f"start: answer | {begin} calls", f"answer: {_json(_of(answer))}"]
    if not form.begin:
        return ["start: TEXT | calls", r"TEXT: /([^{](.|\n)*)?/"]
    own = next((mark for mark in marks if mark.text == form.begin), None)
    ways = ["TEXT"] if own is None else ["TEXT", f"TEXT {begin} calls"]
    rules = [r"TEXT: /(.|\n)*/"]
    if own is None or not own.silent:  # spelled in other tokens it would be read as the mark too
        ways.append("marked calls")
        rules.append(f"marked[lazy]: TEXT {_text(form.begin)}")
    return [f"start: {' | '.join(ways)}", *rules]


def _call(tool: Tool, form: CallFormat) -> str:
    head = json.dumps({"name": tool.name, form.arguments_key: None})[: -len("null}")]
    return f"{_text(head)} {_json(_schema(tool))} {_text('}')}"


def _schema(tool: Tool) -> Any:
    return tool.parameters if tool.strict is False else closed(tool.parameters)


def _of(answer: Structured) -> Any:
    return closed(answer.schema) if answer.strict else answer.schema


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**readable(schema), "x-guidance": JSON_STYLE})


def _text(text: str, marks: MarkTokens = ()) -> str:
    """A text, in which marks that are tokens are named by their numbers: what is forced as text
    must not be tokenised as one of them."""
    for mark in marks:
        before, found, after = text.partition(mark.text)
        if found:
            return f"{_text(before, marks)} <[{mark.token}]> {_text(after, marks)}".strip()
    return json.dumps(text) if text else ""
