"""What a reply with tools must match, as a grammar for llguidance: free text up to the mark of a
call, and from there nothing but calls that fit their tools' schemas. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmserve.core.types import Structured
from llmserve.engines.call_formats import CallFormat
from llmserve.engines.guided.closed_schemas import closed, readable
from llmserve.engines.guided.grammars import JSON_STYLE
from llmserve.entrypoints.http.tools.choice import Tool, ToolChoice


def reply_grammar(
    choice: ToolChoice, form: CallFormat, answer: Structured | None = None, mark: int | None = None
) -> str:
    """Lark text. `answer`: the JSON schema of a reply that calls nothing, where it has one.
    `mark`: the token that is the format's mark, where it is one without text. RecursionError where
    a schema is nested too deeply."""
    tools = choice.callable
    several = form.several and choice.parallel
    before = form.opening.partition("{")[0]
    more = f"({_text(form.between)} call)*" if several else ""
    rules = [
        f"calls: {_text(before)} call {more} {_text(form.end)}",
        "call: " + " | ".join(f"call_{index}" for index in range(len(tools))),
        *(f"call_{index}: {_call(tool, form)}" for index, tool in enumerate(tools)),
    ]
    marked = f"<[{mark}]>" if mark is not None else _text(form.begin)
    if choice.mode == "required":
        start = [f"start: {marked} calls"]
    elif answer is not None:
        start = [f"start: answer | {marked} calls", f"answer: {_json(_of(answer))}"]
    elif not form.begin:
        start = ["start: TEXT | calls", r"TEXT: /([^{](.|\n)*)?/"]
    elif mark is not None:
        start = [f"start: TEXT | TEXT {marked} calls", r"TEXT: /(.|\n)*/"]
    else:
        start = ["start: TEXT | marked calls", f"marked[lazy]: TEXT {marked}", r"TEXT: /(.|\n)*/"]
    return "\n".join([*start, *rules]) + "\n"


def _call(tool: Tool, form: CallFormat) -> str:
    head = json.dumps({"name": tool.name, form.arguments_key: None})[: -len("null}")]
    return f"{_text(head)} {_json(_schema(tool))} {_text('}')}"


def _schema(tool: Tool) -> Any:
    return tool.parameters if tool.strict is False else closed(tool.parameters)


def _of(answer: Structured) -> Any:
    return closed(answer.schema) if answer.strict else answer.schema


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**readable(schema), "x-guidance": JSON_STYLE})


def _text(text: str) -> str:
    return json.dumps(text) if text else ""
