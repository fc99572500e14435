"""One plot's axes on any canvas: from values to pixels, and the lines and labels drawn there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from llmserve.core.quantities import tick
from llmserve.plots.svg import FAINT, FEW, GRID, ticks

MARK = "#757575"

Point = tuple[float, float]


class Canvas(Protocol):
    """What can be drawn on: SVG (`svg.SvgCanvas`), or the pixels of a PNG."""

    def path(self, points: Sequence[Point], ink: str, width: float = 1, dash: str = "") -> None: ...

    def dot(self, x: float, y: float, ink: str) -> None: ...

    def text(self, x: float, y: float, words: str, ink: str = ..., anchor: str = "") -> None:
        """`y` is the baseline; `anchor`, of SVG: "" begins at `x`, "middle" and "end"."""
        ...


@dataclass(frozen=True, slots=True)
class Axes:
    """A rectangle in pixels, `start` to `end` along it and 0 to `high` up."""

    canvas: Canvas
    left: float
    right: float
    top: float
    floor: float
    start: float
    end: float
    high: float

    def x(self, value: float) -> float:
        share = (value - self.start) / ((self.end - self.start) or 1)
        return self.left + share * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.floor - value / self.high * (self.floor - self.top)

    def levels(self, values: Sequence[float]) -> None:
        """A line across at each value, labelled on the left."""
        for value in values:
            y = self.y(value)
            self.canvas.path([(self.left, y), (self.right, y)], GRID)
            self.canvas.text(self.left - 6, y + 4, tick(value), FAINT, "end")

    def halves(self) -> list[float]:
        return [0, self.high / 2, self.high]

    def along(self, title: str) -> None:
        """Labels of the x axis, and its title below them."""
        for at in ticks(self.start, self.end):
            self.canvas.text(self.x(at), self.floor + 16, tick(at), FAINT, "middle")
        if title:
            middle = (self.left + self.right) / 2
            self.canvas.text(middle, self.floor + 33, title, FAINT, "middle")

    def marks(self, marks: Mapping[float, str], ink: str = MARK, *, rows: int = 1) -> None:
        """Labelled x values; their words stand in so many rows by turns."""
        for number, (at, words) in enumerate(marks.items()):
            if not self.start <= at <= self.end:
                continue
            x = self.x(at)
            self.canvas.path([(x, self.top), (x, self.floor)], ink, dash="4 3")
            late = rows > 1 and x > self.right - 160  # its words would leave the picture
            self.canvas.text(
                x + (-4 if late else 4), self.top + 11 + number % rows * 13, words, ink,
                "end" if late else "",
            )  # fmt: skip

    def line(
        self, xs: Sequence[float], ys: Sequence[float], ink: str, width: float = 1.5,
        *, steps: bool = False, dots: bool = True,
    ) -> None:  # fmt: skip
        """Broken where a value is missing (NaN); with `steps` a value holds until the next."""
        run = list[Point]()
        for x, y in zip(xs, ys, strict=True):
            if math.isfinite(y):
                run.append((self.x(x), self.y(y)))
            else:
                self._run(run, ink, width, steps)
                run = []
        self._run(run, ink, width, steps)
        if dots and not steps and len(xs) < FEW:  # a single point is no line yet
            for x, y in zip(xs, ys, strict=True):
                if math.isfinite(y):
                    self.canvas.dot(self.x(x), self.y(y), ink)

    def _run(self, points: list[Point], ink: str, width: float, steps: bool) -> None:
        if steps:
            points = [p for a, b in pairwise(points) for p in (a, (b[0], a[1]))] + points[-1:]
        if points:
            self.canvas.path(points, ink, width)
