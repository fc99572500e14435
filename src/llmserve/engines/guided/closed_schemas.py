"""Schemas closed to names that they do not list, as OpenAI's strict mode has it. Pure.

Where a schema lists properties and does not say whether others may come, others may not: else a
small model goes on inventing them. What a schema says itself always stands, and an object whose
parts are said in several places (allOf, anyOf beside properties) is left as it is, for closing
one part would forbid the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SAID = (
    "additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames",
    "dependentRequired", "dependentSchemas", "dependencies",
)  # fmt: skip
"""Keywords by which a schema says itself what other properties there may be."""
_PARTS = ("allOf", "anyOf", "oneOf", "if", "then", "else", "not", "$ref", "$dynamicRef")
"""Keywords that add to what stands beside them."""
_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions")
_OF_LISTS = ("anyOf", "oneOf", "prefixItems")
_OF_ONE = ("items", "additionalItems", "additionalProperties", "unevaluatedItems", "contains")
_REMARKS = frozenset({
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "$defs", "definitions", "$schema", "$id", "$comment",
})  # fmt: skip
"""Keywords that constrain nothing."""


def closed(schema: Any) -> Any:
    """The schema with `additionalProperties: false` where it lists properties and says nothing
    else. RecursionError where it is nested too deeply."""
    return _closed(schema, frozenset(_composed(schema)))


def _closed(schema: Any, kept: frozenset[int]) -> Any:
    if not isinstance(schema, Mapping) or id(schema) in kept:
        return schema
    found = dict(schema)
    for name in _OF_NAMES:
        if isinstance(inner := found.get(name), Mapping):
            found[name] = {key: _closed(one, kept) for key, one in inner.items()}
    for name in _OF_LISTS if _alone(schema) is not None else ("prefixItems",):
        if isinstance(inner := found.get(name), list):
            found[name] = [_closed(one, kept) for one in inner]
    for name in _OF_ONE:
        inner = found.get(name)
        if isinstance(inner, list):  # draft 4's items
            found[name] = [_closed(one, kept) for one in inner]
        elif inner is not None:
            found[name] = _closed(inner, kept)
    if _alone(schema) == "allOf" and len(schema["allOf"]) == 1:
        found["allOf"] = [_closed(schema["allOf"][0], kept)]
    if _lists_all(schema):
        found["additionalProperties"] = False
    return found


def _alone(schema: Mapping[str, Any]) -> str | None:
    """The one keyword that constrains, beside `type`, where there is one."""
    words = [name for name in schema if name not in _REMARKS and name != "type"]
    return words[0] if len(words) == 1 else None


def _lists_all(schema: Mapping[str, Any]) -> bool:
    """Whether it lists properties, and forbidding others contradicts nothing that it says."""
    properties, required = schema.get("properties"), schema.get("required", [])
    return (
        isinstance(properties, Mapping)
        and not any(name in schema for name in (*_SAID, *_PARTS))
        and isinstance(required, list)
        and all(name in properties for name in required)
        and not _more_than(schema.get("minProperties"), len(properties))
    )


def _more_than(least: Any, listed: int) -> bool:
    return isinstance(least, int | float) and least > listed


def _composed(schema: Any) -> set[int]:
    """Ids of the schemas that say a part of an object only: members of allOf and of what stands
    beside other keywords, and all that those refer to."""
    found: set[int] = set()
    for inner in _all_of(schema):
        parts = [name for name in _PARTS if name in inner]
        alone = _alone(inner)
        if not parts or (alone in parts and alone not in ("allOf", "not", "if")):
            continue
        if alone == "allOf" and isinstance(inner["allOf"], list) and len(inner["allOf"]) == 1:
            continue
        _keep(inner, schema, found)
    return found


def _keep(part: Any, root: Any, found: set[int]) -> None:
    """Keep a schema, all within it, and all that it refers to, as they are."""
    for inner in _all_of(part):
        if id(inner) in found:
            continue
        found.add(id(inner))
        target = _target(inner.get("$ref"), root)
        if target is not None and id(target) not in found:
            _keep(target, root, found)


def _all_of(schema: Any) -> Iterator[Mapping[str, Any]]:
    """The objects within a schema, itself among them."""
    if isinstance(schema, Mapping):
        yield schema
        for inner in schema.values():
            yield from _all_of(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from _all_of(inner)


def _target(ref: Any, root: Any) -> Any:
    if not isinstance(ref, str) or not ref.startswith("#"):
        return None
    found = root
    for step in ref[1:].split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


FORMATS = (
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
)  # fmt: skip
"""Formats of strings that a reply is kept to."""


def readable(schema: Any) -> Any:
    """Without other formats: by JSON schema's own rule they are remarks."""
    if isinstance(schema, list):
        return [readable(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        name: one if name in ("const", "enum") else readable(one)
        for name, one in schema.items()
        if name != "format" or not isinstance(one, str) or one in FORMATS
    }
