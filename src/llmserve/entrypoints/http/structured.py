"""Structured output in a body: OpenAI's response_format, and vLLM's names. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import Any, Literal, Protocol

import msgspec

from llmserve.core.types import Structured
from llmserve.core.validation import mistyped
from llmserve.engines.base import ChecksSchemas, Engine
from llmserve.entrypoints.http.errors import ApiError, invalid

KINDS = ("json", "json_object", "regex", "choice", "grammar")
"""What `structured_outputs` may ask for here, one at a time."""
_KINDS_ELSEWHERE = ("structural_tag",)
"""What an engine's own application may read of it besides."""
ANY_OBJECT = Structured("json", '{"type":"object"}')


class StructuredRequest(Protocol):
    """The fields that may hold a schema; at most one of them does."""

    response_format: Any
    structured_outputs: Any
    guided_json: Any
    guided_regex: Any
    guided_choice: Any
    guided_grammar: Any


def structured(body: StructuredRequest) -> Structured | None:
    """What the reply must match; None for any text. ApiError 400 for what cannot be read."""
    found = schema_fields(body)
    if len(found) > 1:
        raise _only_one(found[1][0])
    return found[0][1] if found else None


def check_one_form(body: StructuredRequest) -> None:
    """ApiError 400 where two fields ask for a form, on the way to an engine that reads more kinds
    of them than our own."""
    text = {"type": "text"}
    asked = [name for name in _READERS if getattr(body, name) not in (None, text)]
    if len(asked) > 1:
        raise _only_one(asked[1])
    if isinstance(body.structured_outputs, Mapping):
        one = body.structured_outputs
        kinds = [name for name in KINDS + _KINDS_ELSEWHERE if one.get(name) is not None]
        if len(kinds) != 1:
            raise _not_one("structured_outputs", one)


def check_supported(body: StructuredRequest, engine: Engine, *, tools: bool = False) -> str:
    """The field that asks for a form, `tools` where calls do. ApiError 400 that names it where this
    engine has no structured output."""
    asking = ["tools"] if tools else []
    asking += [name for name, _ in schema_fields(body)]
    if asking and not isinstance(engine, ChecksSchemas):
        raise ApiError(
            400, f"{asking[0]} is not supported by this server", param=asking[0],
            code="unsupported_parameter",
        )  # fmt: skip
    return asking[0] if asking else "structured_outputs"


def schema_fields(body: StructuredRequest) -> list[tuple[str, Structured]]:
    given = _given(body)
    if given == _NOTHING:
        return []
    found = [(name, read(one)) for (name, read), one in zip(_READERS.items(), given, strict=True)]
    return [(name, form) for name, form in found if form is not None]


def _response_format(value: Any) -> Structured | None:
    if value is None:
        return None
    match value:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return ANY_OBJECT
        case {"type": "json_schema", "json_schema": {"schema": schema, **more}}:
            return _json("response_format", schema, more.get("strict"))
    raise invalid(
        "response_format",
        "response_format is of type text, json_object or json_schema, the last with "
        "json_schema.schema",
    )


def _structured_outputs(value: Any) -> Structured | None:
    name = "structured_outputs"
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise invalid(name, mistyped(name, "an object", value))
    given = {key: one for key, one in value.items() if one is not None and one is not False}
    match given:
        case {"json": schema, **rest} if not rest:
            return _json(name, schema)
        case {"json_object": True, **rest} if not rest:
            return ANY_OBJECT
        case {"regex": regex, **rest} if not rest:
            return _text("regex", name, regex)
        case {"grammar": grammar, **rest} if not rest:
            return _text("grammar", name, grammar)
        case {"choice": choice, **rest} if not rest:
            return _choice(name, choice)
    raise _not_one(name, value)


def _not_one(name: str, value: Any) -> ApiError:
    kinds = f"one of {', '.join(KINDS[:-1])} and {KINDS[-1]}"
    return invalid(name, mistyped(name, kinds, value))


def _only_one(name: str) -> ApiError:
    return invalid(name, "one request can ask for one schema of its reply")


def _json(name: str, schema: Any, strict: Any = None) -> Structured | None:
    if schema is None:
        return None
    if not isinstance(strict, bool | None):
        raise invalid(name, mistyped(f"strict of {name}", "true, false or null", strict))
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema)
        except (ValueError, RecursionError):
            raise invalid(name, f"the schema of {name} is not valid JSON") from None
    if not isinstance(schema, Mapping | bool):
        raise invalid(name, mistyped(f"the schema of {name}", "an object", schema))
    return Structured("json", msgspec.json.encode(schema).decode(), strict is not False)


def _text(kind: Literal["regex", "grammar"], name: str, value: Any) -> Structured | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        said = "regular expression" if kind == "regex" else kind
        takes = "a string that says something"
        raise invalid(name, mistyped(f"the {said} of {name}", takes, value))
    return Structured(kind, value)


def _choice(name: str, choices: Any) -> Structured | None:
    if choices is None:
        return None
    if (
        not isinstance(choices, list)
        or not choices
        or not all(isinstance(one, str) and one for one in choices)
    ):
        kind = "a list of strings, none of them empty"
        raise invalid(name, mistyped(f"the choices of {name}", kind, choices))
    return Structured("choice", msgspec.json.encode(choices).decode())


_READERS: Mapping[str, Callable[[Any], Structured | None]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": partial(_json, "guided_json"),
    "guided_regex": partial(_text, "regex", "guided_regex"),
    "guided_choice": partial(_choice, "guided_choice"),
    "guided_grammar": partial(_text, "grammar", "guided_grammar"),
}
"""The fields that may ask for a form, each with its reader."""
_given = attrgetter(*_READERS)
_NOTHING = (None,) * len(_READERS)
