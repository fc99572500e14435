"""Numbers as users give them, from a cell, JSON or a command line: Python's own, within bounds."""

from __future__ import annotations

import math
from numbers import Real

from llmserve.mistakes import shown
from llmserve.plain import plain


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
