"""The shape of what was tried: the frontier of gain and latency, and cliffs along a knob. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

CLIFF = 0.5
"""A fall to less than this share between neighbours is a cliff."""


@dataclass(frozen=True, slots=True)
class Cliff:
    """Between two neighbouring values of one knob, or of the rate, the figure falls."""

    name: str
    low: float
    high: float
    falls_to: float
    """The worse side's figure as a share of the better one's."""

    def __str__(self) -> str:
        return f"cliff between {self.low:g} and {self.high:g} ({self.name})"


def frontier(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (latency, gain) that no other one beats in both, by rising latency."""
    found: list[tuple[float, float]] = []
    for latency, gain in sorted(points, key=lambda each: (each[0], -each[1])):
        if not found or gain > found[-1][1]:
            found.append((latency, gain))
    return found


def cliffs(
    points: Sequence[tuple[Mapping[str, Any], float]], at: Mapping[str, Any]
) -> list[Cliff]:
    """Along each numeric knob through the point `at`, where all other knobs are as there."""
    found = []
    for name in at:
        line = sorted(
            (values[name], figure)
            for values, figure in points
            if _number(values[name]) and all(values[n] == at[n] for n in at if n != name)
        )
        for (low, before), (high, after) in pairwise(line):
            best, worst = max(before, after), min(before, after)
            if best > 0 and worst < CLIFF * best and high > low:
                found.append(Cliff(name, low, high, worst / best))
    return found


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def proposals(
    grid: Sequence[Mapping[str, Any]],
    predicted: Mapping[int, float],
    present: Mapping[str, Any],
    most: int,
    alike: Callable[[int], object] = lambda place: place,
) -> list[int]:
    """Places of the grid to try, the best prediction first, and no two that are predicted to be
    `alike`: of those the one with the fewest changes stands for all."""
    order = sorted(
        predicted, key=lambda place: (-predicted[place], _changes(grid[place], present), place)
    )
    seen: set[object] = set()
    found = []
    for place in order:
        if (key := alike(place)) not in seen:
            seen.add(key)
            found.append(place)
    return found[:most]


def _changes(values: Mapping[str, Any], present: Mapping[str, Any]) -> int:
    return sum(values[name] != present[name] for name in values)
