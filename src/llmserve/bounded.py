"""Numbers as users give them, from a cell, JSON or a command line: Python's own, within bounds."""

from __future__ import annotations

import math
from numbers import Real

from llmserve.mistakes import shown
from llmserve.plain import plain


def whole(name: str, value: object, low: float, high: float, unit: str = "") -> int:
    """ValueError in a sentence where it is no whole number, or out of bounds."""
    number = _number(name, value, "a whole number")
    _check(name, number, value, low, high, unit)
    if number != int(number):
        raise ValueError(f"{name} takes a whole number, not {shown(value)}")
    return int(number)


def real(name: str, value: object, low: float, high: float, unit: str = "") -> float:
    """As `whole`, of any number."""
    number = _number(name, value, "a number")
    _check(name, number, value, low, high, unit)
    return float(number)


def _number(name: str, value: object, kind: str) -> int | float:
    own = plain(value)
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


def _check(
    name: str, number: int | float, value: object, low: float, high: float, unit: str
) -> None:
    if not low <= number <= high:
        bounds = f"within {low:,} and {high:,} {unit}".rstrip()
        raise ValueError(f"{name} must be {bounds}, not {shown(plain(value))}")
