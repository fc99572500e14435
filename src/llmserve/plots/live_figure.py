"""A picture of work under way in its cell, drawn anew as it goes on.

SVG, because a notebook draws a plotly figure once and passes its updates over; a sketch of two
curves costs the cell's thread less than a millisecond a second, and stays when the kernel is gone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmserve.plots.axes import Axes
from llmserve.plots.figures import Series
from llmserve.plots.svg import FAINT, INKS, TEXT, SvgCanvas, nice_ceiling, page

_WIDTH, _PLOT, _GAP = 720, 120, 34
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 46, 40


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
    canvas = SvgCanvas()
    for i, (name, series) in enumerate(panels.items()):
        top = _TOP + i * (_PLOT + _GAP)
        high = nice_ceiling(max((v for _, ys in series.values() for v in ys), default=0.0))
        axes = Axes(canvas, _LEFT, _WIDTH - _RIGHT, top, top + _PLOT, start, end, high)
        canvas.text(_LEFT, top - 6, name, FAINT)
        axes.levels(axes.halves())
        axes.marks(marks or {})
        _draw(axes, series)
        for note in notes if i == 0 else ():
            _draw_note(axes, *note)
        if i == len(panels) - 1:
            axes.along(x)
    return LiveFigure(title, page(_WIDTH, height, title, canvas.parts))


def _draw(axes: Axes, series: Series) -> None:
    for i, (name, (xs, ys)) in enumerate(series.items()):
        ink = INKS[i % len(INKS)]
        axes.line(xs, ys, ink, 1.75)
        if len(series) > 1:
            axes.canvas.text(axes.right, axes.top + 10 + 13 * i, name, ink, "end")


def _draw_note(axes: Axes, px: float, py: float, words: str) -> None:
    x = axes.x(px)
    right = x < _WIDTH - 160
    place = (x + (6 if right else -6), axes.y(py) - 5)
    axes.canvas.text(*place, words, TEXT, "" if right else "end")


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
