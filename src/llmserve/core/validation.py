"""Values as users give them, from a cell, JSON or a command line: checked, and named in errors.

This is the only place that phrases a range, a wrong value or the name that was meant.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

_LONGEST, _KEPT = 200, 60
_MOST_TOLD = 100
_CLOSE = 0.7


def whole(name: str, value: object, low: float, high: float, unit: str = "") -> int:
    """ValueError in a sentence where it is no whole number, or out of bounds."""
    own = plain(value)
    number = _within(name, own, "a whole number", low, high, unit)
    if number != int(number):
        raise ValueError(f"{name} takes a whole number, not {shown(own)}")
    return int(number)


def real(name: str, value: object, low: float, high: float, unit: str = "") -> float:
    """As `whole`, of any number."""
    return float(_within(name, plain(value), "a number", low, high, unit))


def _within(
    name: str, own: object, kind: str, low: float, high: float, unit: str
) -> int | float:
    number = _number(name, own, kind)
    if not low <= number <= high:
        bounds = f"within {low:,} and {high:,} {unit}".rstrip()
        raise ValueError(f"{name} must be {bounds}, not {shown(own)}")
    return number


def _number(name: str, own: object, kind: str) -> int | float:
    try:
        if isinstance(own, bool) or not isinstance(own, Real | str):
            raise ValueError
        number = own if isinstance(own, int) else float(own)
        if math.isnan(number):
            raise ValueError
    except OverflowError:  # a fraction beyond any float
        return math.inf
    except ValueError:
        raise ValueError(f"{name} takes {kind}, not {shown(own)}") from None
    return number


def plain(value: Any) -> Any:
    """A number as int or float; an array, a column or a range as a list; the rest as it is."""
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

    listed: what is told in place of all that is `known`; nothing where it is empty.
    """
    names = {_folded(name): name for name in known}
    typed = word if isinstance(word, str) else shown(word)
    if near := _near(_folded(typed), names):
        return f"; did you mean {names[near]}?"
    told = [*(names.values() if listed is None else listed)]
    return f"; {called} {', '.join(told)}" if 0 < len(told) <= _MOST_TOLD else ""


def _near(word: str, names: Iterable[str]) -> str | None:
    begun = [name for name in names if len(word) > 1 and name.startswith(word)]
    close = begun or difflib.get_close_matches(word, names, n=1, cutoff=_CLOSE)
    within = close or [name for name in names if len(word) > 3 and word in name]
    return within[0] if within else None


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
