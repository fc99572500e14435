"""The tools that clients offer, and what makes a call one that its schema allows."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me a story about a lighthouse."}]
TOO_LONG: list[Any] = [{"role": "user", "content": "lighthouse " * 6000}]
"""More than the context of either engine holds."""
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Where"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "unit", "days"],
}
"""`city` has no bound of its own, and unknown properties are not forbidden: as people write it."""
ADD: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
SCHEMAS = {"get_weather": WEATHER, "add": ADD}


def function(name: str) -> dict[str, Any]:
    """A tool as Chat Completions has it."""
    about = {"description": f"{name} does it", "parameters": SCHEMAS[name]}
    return {"type": "function", "function": {"name": name, **about}}


TOOLS: list[Any] = [function("get_weather"), function("add")]


def named(name: str) -> Any:
    return {"type": "function", "function": {"name": name}}


def check_call(name: str | None, arguments: str | dict[str, Any] | None) -> dict[str, Any]:
    """The arguments of a call of one of `TOOLS`, which keep to its schema and invent nothing."""
    assert name in SCHEMAS, name
    assert arguments is not None
    given: dict[str, Any] = json.loads(arguments) if isinstance(arguments, str) else arguments
    Draft202012Validator(SCHEMAS[name]).validate(given)
    assert given.keys() <= SCHEMAS[name]["properties"].keys()
    return given
