"""JSON objects read by their names alone: no value is built, and no name may come twice. Pure.

Python's readers take the last of two values of one name: the other would be dropped silently.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from llmserve.core.validation import shown
from llmserve.entrypoints.http.errors import ApiError


class _Name(str):
    """A name of an object, equal to itself alone: a dict of such names keeps both of a pair."""

    __slots__ = ()
    __hash__ = object.__hash__
    __eq__ = object.__eq__


def _named(kind: type[_Name], name: str) -> _Name:
    return kind(name)


_ANY_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OBJECT = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=_named)
_HOLDS_MORE = (ord("{"), ord("["))
_OBJECTS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


def members(
    raw: bytes | msgspec.Raw, at: str = "", *, unique: bool = True
) -> dict[str, msgspec.Raw]:
    """The object's values by their names, unread. ApiError 400 where it is none, or where a name
    comes twice; `at` is its path in the body.

    unique: False takes the last of two of a name, in a quarter of the time.
    """
    try:
        if not unique:
            return _ANY_OBJECT.decode(raw)
        found = _OBJECT.decode(raw)
    except RecursionError:
        raise too_deep() from None
    except msgspec.ValidationError as error:
        raise mistyped(error, at) from None
    except ValueError as error:  # msgspec's own, and bytes that are not UTF-8
        raise not_json(error) from None
    named = {str(name): value for name, value in found.items()}
    if len(named) < len(found):
        raise _twice([str(name) for name in found], at)
    return named


def objects_of(
    raw: msgspec.Raw, at: str, *, unique: bool = True
) -> Sequence[dict[str, msgspec.Raw] | None]:
    """The list's objects as `members` reads them; None for an element that is none."""
    if not unique:
        with suppress(msgspec.ValidationError):
            return _OBJECTS.decode(raw)  # in one pass, where all of them are objects
    return [
        members(each, f"{at}[{index}]", unique=unique) if begins(each) == ord("{") else None
        for index, each in enumerate(_LIST.decode(raw))
    ]


def begins(raw: msgspec.Raw) -> int:
    """The value's first byte, which says of what kind it is."""
    return memoryview(raw)[0]


def check_unique(raw: msgspec.Raw, at: str) -> None:
    """ApiError 400 where a name comes twice in one object, however deep: for values that are read
    whole, as schemas are."""
    if begins(raw) not in _HOLDS_MORE or b"{" not in (text := bytes(raw)):
        return

    def unique(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise _twice(names, at)

    try:
        json.loads(text, object_pairs_hook=unique, parse_int=len, parse_float=len)
    except RecursionError:
        raise too_deep() from None
    except ValueError as error:  # a text that msgspec takes too
        raise not_json(error) from None


def joined(at: str, name: str) -> str:
    """`messages[2]` and `content` are `messages[2].content`."""
    return f"{at}.{name}" if at else name


def mistyped(error: msgspec.ValidationError, at: str = "") -> ApiError:
    """msgspec's error, with the path of the value as `param`."""
    said = str(error)
    what, _, path = said.partition(" - at `$")
    inner = path.removesuffix("`").removeprefix(".")
    param = joined(at, inner) if inner and inner[0] != "[" else at + inner
    if what.startswith("Object missing required field `"):
        param = joined(param, what.split("`")[1])
    return ApiError(
        400, f"{param}: {what}" if param else said, param=param or None, code="invalid_type"
    )


def _twice(names: list[str], at: str) -> ApiError:
    name = next(name for name in names if names.count(name) > 1)
    path = joined(at, name)
    return ApiError(
        400, f"{shown(path)} is in the body twice: send it once", param=path, code="invalid_json"
    )


def too_deep() -> ApiError:
    return ApiError(400, "the JSON body is nested too deeply", code="invalid_json")


def not_json(error: ValueError) -> ApiError:
    return ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json")
