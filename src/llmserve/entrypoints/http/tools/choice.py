"""`tools`, `tool_choice` and `parallel_tool_calls` of a body, checked. Pure.

Chat's tools hold their function in an object of its own, those of /v1/responses are flat.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from llmserve.core.validation import mistyped, not_one_of, out_of, span, unlike
from llmserve.entrypoints.http.errors import ApiError, invalid

MOST_TOOLS = 128
"""Of one request, as OpenAI has it."""
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")

ToolMode = Literal["none", "auto", "required"]


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """One function that the model may call."""

    name: str
    parameters: Mapping[str, Any]
    """JSON schema of an object."""
    description: str | None = None
    strict: bool | None = None
    """False, when the client says so, leaves arguments open to names that the schema lacks."""

    @property
    def described(self) -> dict[str, Any]:
        """As chat templates are given it: the form of OpenAI's chat."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": {**function, "parameters": self.parameters}}


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What may be called in a reply, and what must be."""

    tools: tuple[Tool, ...]
    mode: ToolMode = "auto"
    named: tuple[str, ...] | None = None
    """Those that may be called, where the client names them; None for all."""
    parallel: bool = True
    """Whether one reply may hold several calls."""

    @property
    def callable(self) -> tuple[Tool, ...]:
        """The tools that may be called in this reply."""
        if self.mode == "none":
            return ()
        if self.named is None:
            return self.tools
        return tuple(tool for tool in self.tools if tool.name in self.named)


def read_tools(
    tools: Any, tool_choice: Any = None, parallel_tool_calls: Any = None, *, flat: bool = False
) -> ToolChoice | None:
    """None where there is no tool. ApiError 400 names the field that cannot be taken; `flat` reads
    the shapes of /v1/responses."""
    found = _tools(tools, flat)
    parallel = _parallel(parallel_tool_calls)
    mode, named, one = _choice(tool_choice, flat)
    if not found:
        if mode == "required":
            said = "tool_choice asks for a call, and the request has no tools"
            raise invalid("tool_choice", said)
        return None
    known = [tool.name for tool in found]
    for name in named or ():
        if name not in known:
            raise invalid("tool_choice", not_one_of("tool_choice", name, known))
    return ToolChoice(tools=found, mode=mode, named=named, parallel=parallel and not one)


def _tools(given: Any, flat: bool) -> tuple[Tool, ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        raise invalid("tools", mistyped("tools", "a list of functions", given))
    if len(given) > MOST_TOOLS:
        raise invalid("tools", out_of("tools", span(0, MOST_TOOLS, "functions"), len(given)))
    found = tuple(_tool(f"tools[{index}]", one, flat) for index, one in enumerate(given))
    names = [tool.name for tool in found]
    for name in names:
        if names.count(name) > 1:
            raise invalid("tools", f"tools has two functions named {name!r}")
    return found


def _tool(place: str, given: Any, flat: bool) -> Tool:
    if not isinstance(given, Mapping):
        raise invalid("tools", mistyped(place, "an object of type function", given))
    if given.get("type") != "function":
        kind = given.get("type")
        raise ApiError(
            400, f"{place}.type {kind!r} is not supported by this server; 'function' is",
            param="tools", code="unsupported_parameter",
        )  # fmt: skip
    function = given if flat else given.get("function")
    at = place if flat else f"{place}.function"
    if not isinstance(function, Mapping):
        raise invalid("tools", mistyped(at, "an object with a name", function))
    description = function.get("description")
    if not isinstance(description, str | None):
        raise invalid("tools", mistyped(f"{at}.description", "a text", description))
    strict = function.get("strict")
    if not isinstance(strict, bool | None):
        raise invalid("tools", mistyped(f"{at}.strict", "true, false or null", strict))
    return Tool(
        name=_name("tools", f"{at}.name", function.get("name")),
        description=description,
        parameters=_parameters(f"{at}.parameters", function.get("parameters")),
        strict=strict,
    )


def _name(param: str, place: str, given: Any) -> str:
    if not isinstance(given, str) or not _NAME.fullmatch(given):
        kind = "1 to 64 letters, digits, underscores and dashes"
        raise invalid(param, unlike(place, kind, given))
    return given


def _parameters(place: str, given: Any) -> Mapping[str, Any]:
    if given is None or given == {}:
        return NO_PARAMETERS
    if not isinstance(given, Mapping):
        raise invalid("tools", mistyped(place, "a JSON schema of an object", given))
    if given.get("type", "object") != "object":
        raise invalid("tools", unlike(f"{place}.type", "'object'", given["type"]))
    return {"type": "object", **given}


def _parallel(given: Any) -> bool:
    if not isinstance(given, bool | None):
        name = "parallel_tool_calls"
        raise invalid(name, mistyped(name, "true, false or null", given))
    return given is not False


def _choice(given: Any, flat: bool) -> tuple[ToolMode, tuple[str, ...] | None, bool]:
    """The mode, the names that may be called, and whether it is exactly one call."""
    match given:
        case None | "auto":
            return "auto", None, False
        case "none":
            return "none", None, False
        case "required":
            return "required", None, False
        case {"type": "function"}:
            return "required", (_named(given, flat),), True
        case {"type": "allowed_tools"}:
            return _allowed(given, flat)
    kind = "none, auto, required, or an object of type function that names one"
    raise invalid("tool_choice", unlike("tool_choice", kind, given))


def _allowed(given: Mapping[str, Any], flat: bool) -> tuple[ToolMode, tuple[str, ...] | None, bool]:
    found = given if flat else given.get("allowed_tools")
    match found:
        case {"mode": "auto" | "required" as mode, "tools": [_, *_] as tools}:
            names = tuple(_named(one, flat) for one in tools)
            return ("auto" if mode == "auto" else "required"), names, False
    kind = "a mode, auto or required, and tools that it names"
    raise invalid("tool_choice", unlike("tool_choice.allowed_tools", kind, found))


def _named(given: Any, flat: bool) -> str:
    function = given if flat or not isinstance(given, Mapping) else given.get("function")
    name = function.get("name") if isinstance(function, Mapping) else function
    return _name("tool_choice", "tool_choice.name" if flat else "tool_choice.function.name", name)
