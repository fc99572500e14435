"""Which fields vLLM's own routes read: the names of its request classes, and of what they hold.

vLLM takes any field and drops silently what it does not know, so the names are looked at before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel

_UNREAD: Mapping[str, frozenset[str]] = {
    "messages": frozenset({"audio", "function_call", "refusal"}),
}
"""Names that vLLM's classes have and its routes drop."""
_DEEPEST = 4


def fields_of_routes(app: Any, paths: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Of each path that takes a body its fields: with a mapping of the same kind where a field
    holds objects of fields, with None where it holds what it likes."""
    found = {}
    for route in app.routes:
        if paths.get(getattr(route, "path", "")) == "POST":
            kinds = [kind for hint in _hints(route.endpoint).values() for kind in _classes(hint)]
            names = _names(kinds, _DEEPEST)
            for held, unread in _UNREAD.items():
                if isinstance(inner := names.get(held), dict):
                    names[held] = {name: of for name, of in inner.items() if name not in unread}
            found[route.path] = names
    return found


def _names(kinds: list[type], depth: int) -> dict[str, Any]:
    """Names that any of these classes reads, as a client sends them."""
    names: dict[str, Any] = {}
    for kind in kinds:
        for name, hint in _fields(kind):
            inner = [*_classes(hint)] if depth else []
            held = _names(inner, depth - 1) if inner else None
            known = names.get(name)
            names[name] = {**known, **held} if known and held else known or held
    return names


def _fields(kind: Any) -> Iterator[tuple[str, Any]]:
    if issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield field.alias or name, field.annotation
    else:
        yield from ((name, of) for name, of in _hints(kind).items() if name[0] != "_")


def _classes(hint: Any) -> Iterator[type]:
    """The classes with fields of their own within an annotation, in lists and unions too."""
    if isinstance(hint, type) and not get_args(hint):
        if _has_fields(hint):
            yield hint
        return
    if (aliased := getattr(hint, "__value__", None)) is not None:
        yield from _classes(aliased)
    for part in get_args(hint):
        if not _is_mapping(hint):
            yield from _classes(part)


def _has_fields(kind: type) -> bool:
    typed_dict = hasattr(kind, "__required_keys__")  # typing's own, and the backport's
    return typed_dict or issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind)


def _is_mapping(hint: Any) -> bool:
    origin = getattr(hint, "__origin__", None)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _hints(of: Any) -> dict[str, Any]:
    return get_type_hints(of, include_extras=True)
