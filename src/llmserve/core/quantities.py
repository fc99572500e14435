"""Durations and numbers as people read them. Data keeps plain seconds; only what is shown is put
into words here. `widgets/src/quantities.ts` is its twin, and one table of cases tests both.

A duration is in ms below 1 s, in s below 100 s, and in min from there on, with three digits that
say something. No number has an exponent.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

NONE = "–"
_CLOCK_FROM_S = 100.0


class Unit(NamedTuple):
    name: str
    seconds: float
    """How long one of it is."""
    below: float
    """The next larger unit is taken from so many of it on."""


MS: Final = Unit("ms", 1e-3, 1000.0)
S: Final = Unit("s", 1.0, 100.0)
MIN: Final = Unit("min", 60.0, math.inf)
UNITS: Final = (MS, S, MIN)


def unit_of(seconds: float) -> Unit:
    """The unit in which a duration of this size is shown, once it is rounded."""
    size = abs(seconds)
    return next(u for u in UNITS if u is MIN or _rounded(size / u.seconds) < u.below)


def duration(seconds: float | None) -> str:
    """As `845 ms`, `3.26 s`, `12.5 min`; `–` where there is none."""
    if seconds is None or math.isnan(seconds):
        return NONE
    unit = unit_of(seconds)
    if 0 < abs(seconds) < 0.005 * MS.seconds:
        return f"{'-' if seconds < 0 else ''}<0.01 ms"
    return f"{number(seconds / unit.seconds)} {unit.name}"


def spread(seconds: float, half: float | None) -> str:
    """A duration with the half-width of its interval, both in the unit of the larger one."""
    if half is None:
        return duration(seconds)
    unit = unit_of(max(abs(seconds), half))
    return f"{number(seconds / unit.seconds)} ±{number(half / unit.seconds)} {unit.name}"


def moment(seconds: float) -> str:
    """A time since the start, as an axis has it: `41.2 s`, then `2:05`, then `1:02:05`."""
    if abs(seconds) < _CLOCK_FROM_S:
        return f"{number(seconds)} s"
    whole = math.floor(abs(seconds) + 0.5)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours:,}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
    return f"-{text}" if seconds < 0 else text


def number(value: float) -> str:
    """A number in three significant digits, more where larger; `12,400`, never `1.24e+04`."""
    if not math.isfinite(value):
        return NONE
    size = _rounded(abs(value))
    text = f"{size:,.{_decimals(abs(value))}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return f"-{text}" if value < 0 and size else text


def tick(value: float) -> str:
    """A round value beside an axis, with all of its digits up to six decimals."""
    text = f"{value:,.6f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _decimals(size: float) -> int:
    return 2 if size < 10 else 1 if size < 100 else 0


def _rounded(size: float) -> float:
    """Half up, as JavaScript can do it too: both must show the same."""
    if math.isinf(size):
        return size
    scale = float(10 ** _decimals(size))
    return math.floor(size * scale + 0.5) / scale
