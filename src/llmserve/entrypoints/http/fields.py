"""Which fields of a body are read: no field that would change the reply is dropped silently. Pure.

A body's names are looked at before its values are built. Of each name the table says whether it is
read, changes nothing (ignored), or asks for what is not here (400 by its name, unless the value
asks for nothing). A name in no table is 400 too; a server that is not strict reports it instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, get_args

import msgspec

from llmserve.core.validation import meant, shown
from llmserve.entrypoints.http.errors import ApiError
from llmserve.entrypoints.http.known_fields import Neutral
from llmserve.entrypoints.http.nested_fields import INSIDE, Inside
from llmserve.entrypoints.http.objects import begins, check_unique, joined, members, objects_of

_NAMES = re.compile(rb'"\s*:')
"""What follows every name, and seldom comes in a text."""
_LONGEST_NEUTRAL = 64
"""Bytes of a value that may ask for nothing; longer ones are not built."""
_SAME_AS = {"best_of": "n"}
"""A field that asks for nothing where another has the same value."""


class Fields(NamedTuple):
    """What becomes of each name of one object."""

    read: frozenset[str]
    inside: Mapping[str, Fields] = {}
    """Of names that are read and hold objects, the fields of those."""
    ignored: Mapping[str, str] = {}
    refused: Mapping[str, Neutral] = {}
    elsewhere: Mapping[str, str] = {}
    """Of names that another route reads, that route."""
    cures: Mapping[str, str] = {}

    def without(self, names: Iterable[str]) -> Fields:
        """The same where `names` are not read after all."""
        return self._replace(read=self.read - frozenset(names))


def check(raw: bytes, fields: Fields, *, strict: bool = True) -> list[str]:
    """The paths of unknown fields in a body, of which a strict server has none: ApiError 400."""
    walk = _Walk(strict, unique=False)
    walk.object(members(raw, unique=False), fields, "")
    # then names that come twice, names in schemas, or colons in texts
    if raw.count(b":") > walk.names and len(_NAMES.findall(raw)) > walk.names:
        walk = _Walk(strict, unique=True)
        walk.object(members(raw), fields, "")
    return walk.unknown


class _Walk:
    """One look at all names of a body. unique: and at whether each comes once, in schemas too."""

    def __init__(self, strict: bool, *, unique: bool) -> None:
        self.unknown: list[str] = []
        self.names = 0
        self._strict = strict
        self._unique = unique

    def object(self, found: dict[str, msgspec.Raw], fields: Fields, at: str) -> None:
        self.names += len(found)
        if not found.keys() <= fields.read:
            for name in found:
                if name not in fields.read:
                    self._unread(name, found, fields, at)
        for name, inner in fields.inside.items():
            if name in found:
                self._inner(found[name], inner, joined(at, name))
        if self._unique:
            for name in found.keys() & fields.read - fields.inside.keys():
                check_unique(found[name], joined(at, name))

    def _inner(self, raw: msgspec.Raw, fields: Fields, at: str) -> None:
        """An object, or the objects of a list; of what is neither, its reader judges."""
        start = begins(raw)
        if start == ord("{"):
            self.object(members(raw, at, unique=self._unique), fields, at)
        elif start == ord("["):
            for index, found in enumerate(objects_of(raw, at, unique=self._unique)):
                if found is not None:
                    self.object(found, fields, f"{at}[{index}]")

    def _unread(
        self, name: str, found: Mapping[str, msgspec.Raw], fields: Fields, at: str
    ) -> None:
        if name in fields.refused:
            if not _asks_for_nothing(name, found[name], found, fields.refused[name]):
                raise _unsupported(name, fields, at)
        elif name not in fields.ignored:
            if self._strict:
                raise _unknown(name, fields, at)
            self.unknown.append(joined(at, name))


def _asks_for_nothing(
    name: str, raw: msgspec.Raw, found: Mapping[str, msgspec.Raw], neutral: Neutral
) -> bool:
    if len(memoryview(raw)) > _LONGEST_NEUTRAL:
        return False
    value = msgspec.json.decode(raw)
    if isinstance(value, dict):
        value = {name: each for name, each in value.items() if each is not None}
    if value is None or any(_same(value, one) for one in neutral):
        return True
    other = found.get(_SAME_AS.get(name, ""))
    return other is not None and bytes(other) == bytes(raw)


def _same(value: object, neutral: object) -> bool:
    """1.0 is 1, and True is not."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _unsupported(name: str, fields: Fields, at: str) -> ApiError:
    path = joined(at, name)
    cure = fields.cures.get(name)
    more = f"; {cure}" if cure else ""
    return ApiError(
        400, f"{path} is not supported by this server{more}",
        param=path, code="unsupported_parameter",
    )  # fmt: skip


def _unknown(name: str, fields: Fields, at: str) -> ApiError:
    if (route := fields.elsewhere.get(name)) is not None:
        end = f": it is a field of {route}"
    else:
        end = meant(name, sorted(fields.read), listed=())
    path = shown(name)[1:-1]
    where = f" in {at}" if at else ""
    return ApiError(
        400, f"unknown field {shown(name)}{where}{end}",
        param=joined(at, path), code="unknown_parameter",
    )  # fmt: skip


def of_struct(kind: type[msgspec.Struct], at: str = "") -> Fields:
    """What a struct of ours reads, and what INSIDE knows besides."""
    given = msgspec.structs.fields(kind)
    inner = {
        field.encode_name: ofstructs_in([*structs_in(field.type)], joined(at, field.encode_name))
        for field in given
    }
    return _with_known(
        frozenset(field.encode_name for field in given),
        {name: fields for name, fields in inner.items() if fields is not None},
        INSIDE.get(at, Inside()),
    )


def ofstructs_in(kinds: list[type[msgspec.Struct]], at: str) -> Fields | None:
    """What any of them reads; where there is none, what INSIDE says; None for no objects."""
    if not kinds:
        return of_table(at)
    first, *more = [of_struct(kind, at) for kind in kinds]
    for other in more:
        first = _with_known(
            first.read | other.read, {**first.inside, **other.inside}, INSIDE.get(at, Inside())
        )
    return first


def of_table(at: str) -> Fields | None:
    """What INSIDE says is read there; None where it says nothing of that."""
    known = INSIDE.get(at)
    if known is None or not known.read:
        return None
    inner = {name: of_table(joined(at, name)) for name in known.read}
    return _with_known(
        known.read, {name: fields for name, fields in inner.items() if fields is not None}, known
    )


def of_names(names: Mapping[str, Any], at: str = "") -> Fields:
    """What an engine's own application reads: names, with those of the objects they hold."""
    inner = {
        name: of_names(held, joined(at, name)) for name, held in names.items() if held is not None
    }
    return _with_known(frozenset(names), inner, INSIDE.get(at, Inside()))


def _with_known(read: frozenset[str], inside: Mapping[str, Fields], known: Inside) -> Fields:
    return Fields(
        read=read, inside=inside, ignored=known.ignored, refused=known.refused, cures=known.cures
    )


def structs_in(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """The structs within a type, in lists and unions too."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    for part in get_args(kind):
        yield from structs_in(part)
