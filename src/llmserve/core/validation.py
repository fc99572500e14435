"""Values as users give them, from a cell, JSON or a command line: checked, and named in errors.

This is the only place that phrases a range, a wrong value or the name that was meant.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

_LARGEST = sys.float_info.max
_LONGEST, _KEPT = 200, 60
_MOST_LISTED = 100
_CLOSE = 0.7


class MistypedValue(ValueError):
    """A value of another kind than is taken. What is merely out of range is a ValueError."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one number may be: its range, and how a sentence about it reads."""

    name: str
    low: float
    high: float
    unit: str = ""
    kind: Literal["whole", "real"] = "whole"
    above: bool = False
    """The low end itself is out of range."""
    optional: bool = False
    """None is taken as it is."""

    def read(self, value: object, *, called: str = "") -> Any:
        """The number as Python's own; ValueError in a sentence where it is none or out of range.

        called: in place of the name. Text is no number: read what was typed by `number` first.
        """
        if type(value) is _OWN[self.kind] and self._holds(value):  # the common case, quickly
            return value
        if value is None and self.optional:
            return None
        read = whole if self.kind == "whole" else real
        ends = (self.low, self.high)
        name, above = called or self.name, self.above
        return read(name, value, *ends, self.unit, above=above, exact=True)

    def _holds(self, value: Any) -> bool:
        if value == self.low or value == math.inf:
            return value == self.low and not self.above
        return bool(self.low < value <= self.high)


_OWN = {"whole": int, "real": float}
_PLAIN = frozenset({bool, int, float, str})


def whole(
    name: str, value: object, low: float, high: float = math.inf, unit: str = "",
    *, above: bool = False, exact: bool = False,
) -> int:  # fmt: skip
    """ValueError in a sentence where it is no whole number, or out of bounds.

    above: the low end itself is out. exact: neither text nor 8.0 is a whole number.
    """
    own = plain(value)
    found = _number(name, own, "a whole number", exact)
    if (exact and not isinstance(own, int)) or (math.isinf(found) and found in (low, high)):
        raise mistyped(name, "a whole number", own)
    if _outside(found, low, high, above):
        raise out_of(name, span(low, high, unit, above=above), own)
    if found != int(found):
        raise mistyped(name, "a whole number", own)
    return int(found)


def real(
    name: str, value: object, low: float, high: float = math.inf, unit: str = "",
    *, above: bool = False, exact: bool = False,
) -> float:  # fmt: skip
    """As `whole`, of any number; without a high end, of any finite one."""
    own = plain(value)
    found = _number(name, own, "a number", exact)
    if _outside(found, low, min(high, _LARGEST), above):
        bounds = span(low, high, unit, above=above)
        raise out_of(name, f"{bounds} and finite" if high == math.inf else bounds, own)
    return float(found)


def span(low: float, high: float, unit: str = "", *, above: bool = False) -> str:
    """How a range reads: `within 1 and 1,024 requests`, `1 or more`, `above 0 and at most 1`."""
    if high == math.inf:
        least = f"{_written(low)} {unit}".rstrip()
        return f"above {least}" if above else f"{least} or more"
    least, most = _written(low), f"{_written(high)} {unit}".rstrip()
    return f"above {least} and at most {most}" if above else f"within {least} and {most}"


def _written(end: float) -> str:
    return f"{int(end):,}" if end == int(end) else f"{end:,}"


def _outside(found: float, low: float, high: float, above: bool) -> bool:
    return not low <= found <= high or (above and found == low)


def _number(name: str, own: object, kind: str, exact: bool) -> int | float:
    try:
        if isinstance(own, bool) or not isinstance(own, Real if exact else Real | str):
            raise ValueError
        found = own if isinstance(own, int) else float(own)
        if math.isnan(found):
            raise ValueError
    except OverflowError:  # a fraction beyond any float
        return math.inf
    except ValueError:
        raise mistyped(name, kind, own) from None
    return found


def mistyped(name: str, takes: str, value: object) -> MistypedValue:
    """`priority takes a whole number, not True`."""
    return MistypedValue(f"{name} takes {takes}, not {shown(value)}")


def out_of(name: str, bounds: str, value: object) -> ValueError:
    """`max_tokens must be within 1 and 1,000,000 tokens, not 0`."""
    return ValueError(f"{name} must be {bounds}, not {shown(value)}")


def one_of(name: str, value: object, choices: Iterable[Any]) -> Any:
    """The choice that it is; True is not 1."""
    known = list(choices)
    own = plain(value)
    if not any(type(own) is type(choice) and own == choice for choice in known):
        raise not_one_of(name, own, known)
    return own


def not_one_of(name: str, value: object, choices: Iterable[object]) -> ValueError:
    """`policy is one of fifo, priority, not 'lifo'`."""
    return unlike(name, f"one of {', '.join(map(str, choices))}", value)


def unlike(name: str, kind: str, value: object) -> ValueError:
    """`model is a name or a folder, not 3`."""
    return ValueError(f"{name} is {kind}, not {shown(value)}")


def flag(name: str, value: object) -> bool:
    """True or False, and nothing that only counts as one of them."""
    own = plain(value)
    if not isinstance(own, bool):
        raise MistypedValue(f"{name} is true or false, not {shown(own)}")
    return own


def text(name: str, value: object, most: int, *, printable: bool = False) -> str:
    """Text of 1 to `most` characters."""
    fits = isinstance(value, str) and 0 < len(value) <= most
    if not fits or (printable and not str(value).isprintable()):
        kind = "printable characters" if printable else "characters"
        error = ValueError if isinstance(value, str) else MistypedValue
        raise error(f"{name} is 1 to {most:,} {kind}, not {shown(value)}")
    return str(value)


def texts(name: str, value: object, most: int) -> tuple[str, ...]:
    """One text, or several."""
    own = plain(value)
    found = (own,) if isinstance(own, str) else own
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
        raise mistyped(name, f"at most {most} strings", own)
    if len(found) > most or not all(found):
        raise ValueError(f"{name} takes at most {most} strings, none of them empty")
    return tuple(found)


def wholes(name: str, value: object, low: int, high: int) -> tuple[int, ...]:
    """Whole numbers, each of them within the bounds; there may be millions."""
    own = plain(value)
    if not isinstance(own, list | tuple):
        raise mistyped(name, "a list of whole numbers", own)
    if set(map(type, own)) <= {int} and (not own or low <= min(own) <= max(own) <= high):
        return tuple(own)
    return tuple([whole(name, one, low, high, exact=True) for one in own])


def plain(value: Any) -> Any:
    """A number as int or float; an array, a column or a range as a list; the rest as it is."""
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, range):
        return list(value)
    if hasattr(type(value), "tolist"):
        return value.tolist()
    if type(value) in (list, tuple):
        return type(value)(plain(each) for each in value)
    if type(value) is dict:
        return {plain(name): plain(each) for name, each in value.items()}
    return value


def literal(text: str) -> Any:
    """What the text says in Python or in JSON's words; the text itself where that is nothing."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        words = {"true": True, "false": False, "none": None, "null": None}
        return words.get(text.lower(), text)


def number(text: str) -> Any:
    """What was typed, as a number where it is one: anything else its field reports."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return literal(text)


def shown(value: object) -> str:
    """As it would be typed; where that is long, or cannot be written at all, what it is."""
    try:
        text = repr(value)
    except Exception:  # Python refuses so long a number, and a class of the user's may anything
        if isinstance(value, int):
            return "a number of thousands of digits"
        return f"{_article(type(value).__name__)} that cannot be written out"
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_KEPT]}… ({len(text):,} characters)"


def meant(
    word: object,
    known: Iterable[str],
    *,
    listed: Iterable[str] | None = None,
    called: str = "there is",
) -> str:
    """How an error about `word` ends: `; did you mean X?`, or what there is, where that is little
    enough to read.

    listed: what is named in place of all that is `known`; nothing where it is empty.
    """
    names = {_folded(name): name for name in known}
    typed = word if isinstance(word, str) else shown(word)
    if near := _near(_folded(typed), names):
        return f"; did you mean {names[near]}?"
    choices = [*(names.values() if listed is None else listed)]
    return f"; {called} {', '.join(choices)}" if 0 < len(choices) <= _MOST_LISTED else ""


def _near(word: str, names: Iterable[str]) -> str | None:
    begun = [name for name in names if len(word) > 1 and name.startswith(word)]
    close = begun or difflib.get_close_matches(word, names, n=1, cutoff=_CLOSE)
    within = close or [name for name in names if len(word) > 3 and word in name]
    return within[0] if within else None


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
