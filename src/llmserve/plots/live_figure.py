"""A picture of work under way in its cell, drawn anew as it goes on.

SVG, because a notebook draws a plotly figure once and passes its updates over; a sketch of two
curves costs the cell's thread less than a millisecond a second, and stays when the kernel is gone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmserve.core.quantities import tick
from llmserve.plots.figures import Series
from llmserve.plots.svg import FAINT, GRID, INKS, TEXT, dots, nice_ceiling, page, path, text, ticks

_WIDTH, _PLOT, _GAP = 720, 120, 34
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 46, 40
_MARK = "#9e9e9e"


@dataclass(frozen=True, slots=True)
class LiveFigure:
    """Show it with `shown`, or as a cell's last line."""

    title: str
    svg: str

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        return {"image/svg+xml": self.svg, "text/plain": f"<sketch: {self.title}>"}


def sketch(
    title: str, panels: Mapping[str, Series], *, x: str, start: float = 0.0,
    marks: Mapping[float, str] | None = None,
    notes: Sequence[tuple[float, float, str]] = (),
) -> LiveFigure:  # fmt: skip
    """One plot over the other, each named by its y axis with the unit. `start`: where the x axis
    begins; `marks` are labelled x values, `notes` texts beside points of the first plot."""
    xs = [v for series in panels.values() for each, _ in series.values() for v in each]
    end = max([*xs, start + 1.0])
    height = _TOP + len(panels) * (_PLOT + _GAP) - _GAP + _BOTTOM
    plots = [
        _Plot(_TOP + i * (_PLOT + _GAP), start, end, series)
        for i, series in enumerate(panels.values())
    ]
    parts = list[str]()
    for plot, name in zip(plots, panels, strict=True):
        parts += [*plot.axes(name), *plot.marks(marks or {}), *plot.lines()]
    parts += [*(plots[0].note(*each) for each in notes)]
    parts += [*(plots[-1].times(x) if plots else ())]
    return LiveFigure(title, page(_WIDTH, height, title, parts))


class _Plot:
    def __init__(self, top: float, start: float, end: float, series: Series) -> None:
        self._top, self._start, self._end, self._series = top, start, end, series
        high = max((v for _, ys in series.values() for v in ys), default=0.0)
        self._high = nice_ceiling(high)

    def axes(self, name: str) -> list[str]:
        parts = [text(_LEFT, self._top - 6, name, FAINT)]
        for k in range(3):
            level = self._high * k / 2
            y = self._y(level)
            parts.append(path([(_LEFT, y), (_WIDTH - _RIGHT, y)], GRID))
            parts.append(text(_LEFT - 6, y + 4, tick(level), FAINT, "end"))
        return parts

    def times(self, name: str) -> list[str]:
        floor = self._top + _PLOT
        parts = [text((_LEFT + _WIDTH - _RIGHT) / 2, floor + 32, name, FAINT, "middle")]
        for at in ticks(self._start, self._end):
            parts.append(text(self._x(at), floor + 16, tick(at), FAINT, "middle"))
        return parts

    def marks(self, marks: Mapping[float, str]) -> list[str]:
        parts = []
        for at, words in marks.items():
            if self._start <= at <= self._end:
                x = self._x(at)
                parts.append(path([(x, self._top), (x, self._top + _PLOT)], _MARK, dash="3 3"))
                parts.append(text(x + 3, self._top + 10, words, FAINT))
        return parts

    def lines(self) -> list[str]:
        parts = []
        for i, (name, (xs, ys)) in enumerate(self._series.items()):
            ink = INKS[i % len(INKS)]
            points = [(self._x(px), self._y(py)) for px, py in zip(xs, ys, strict=True)]
            parts += [path(points, ink, width=1.75), *dots(points, ink)]
            if len(self._series) > 1:
                parts.append(text(_WIDTH - _RIGHT, self._top + 10 + 13 * i, name, ink, "end"))
        return parts

    def note(self, px: float, py: float, words: str) -> str:
        x = self._x(px)
        right = x < _WIDTH - 160
        return text(
            x + (6 if right else -6), self._y(py) - 5, words, TEXT, "" if right else "end"
        )

    def _x(self, value: float) -> float:
        return _LEFT + (value - self._start) / (self._end - self._start) * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        return self._top + _PLOT * (1 - value / self._high)


def in_notebook() -> bool:
    """Whether this thread's output goes to a cell."""
    shell = sys.modules.get("IPython")
    ip = None if shell is None else shell.get_ipython()
    return ip is not None and hasattr(ip, "kernel")


def shown(first: LiveFigure) -> Callable[[LiveFigure], None]:
    """A place in the cell that shows the latest sketch, `first` at once, so that a progress bar
    stays below it; does nothing where there is no notebook."""
    if not in_notebook():
        return lambda latest: None
    from IPython.display import display

    handle: Any = display(first, display_id=True)
    return lambda latest: handle.update(latest)
