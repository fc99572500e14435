"""Small figures for notebooks: plotly where a page can draw it, SVG where none can.

A stored notebook keeps both in one output, a few kilobytes each, so that it shows the same
picture on a page without a kernel and without plotly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

from llmserve.core.quantities import unit_of
from llmserve.plots.axes import Axes
from llmserve.plots.svg import (
    FAINT,
    FEW,
    INKS,
    SvgCanvas,
    box,
    legend,
    nice_ceiling,
    page,
    text,
    ticks,
)

if TYPE_CHECKING:
    import pandas as pd

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Label to x and y."""

_MOST_POINTS = 500
_WIDTH, _HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 52, 46
_NAMES = 114
"""Where a heat map's cells begin, right of the names of its rows."""
_MARK = "#c03030"
_PLAIN = {"exponentformat": "none", "separatethousands": True}


@dataclass(frozen=True)
class Figure:
    """Show it as a cell's last line."""

    plotly: dict[str, Any]
    """A plotly figure as JSON: `plotly.graph_objects.Figure(figure.plotly)` goes on from there."""
    svg: str

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        return {
            "application/vnd.plotly.v1+json": self.plotly,
            "image/svg+xml": self.svg,
            "text/plain": f"<figure: {self.plotly['layout']['title']['text']}>",
        }


def in_unit(series: Series, axis: Literal["x", "y"]) -> tuple[Series, str]:
    """The same with the seconds of one axis in ms, s or min, by the longest, and that unit."""
    places = [pair["xy".index(axis)] for pair in series.values()]
    unit = unit_of(max((v for each in places for v in each), default=0.0))

    def scaled(values: Sequence[float]) -> list[float]:
        return [v / unit.seconds for v in values]

    if axis == "x":
        return {name: (scaled(xs), ys) for name, (xs, ys) in series.items()}, unit.name
    return {name: (xs, scaled(ys)) for name, (xs, ys) in series.items()}, unit.name


def lines(
    title: str, series: Series, *, x: str, y: str, steps: bool = False,
    marks: Mapping[float, str] | None = None,
) -> Figure:
    """One line per series; `steps` holds a value until the next; `marks` are labelled x values."""
    marks = marks or {}
    thin = {name: _thinned(xs, ys) for name, (xs, ys) in series.items()}
    traces = [
        {
            "type": "scatter", "mode": "lines" if steps or len(xs) >= FEW else "lines+markers",
            "name": name, "x": xs, "y": ys,
            "line": {"color": ink, "width": 1.5, "shape": "hv" if steps else "linear"},
        }
        for ink, (name, (xs, ys)) in zip(cycle(INKS), thin.items(), strict=False)
    ]
    layout = _layout(title, x, y) | {
        "shapes": [
            {"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1,
             "line": {"color": _MARK, "width": 1, "dash": "dash"}}
            for at in marks
        ],
        "annotations": [
            {"x": at, "y": 1, "yref": "paper", "yanchor": "top", "yshift": row % 4 * -15,
             "text": words, "showarrow": False, "xanchor": "left", "font": {"color": _MARK},
             "bgcolor": "rgba(255, 255, 255, 0.8)"}
            for row, (at, words) in enumerate(marks.items())
        ],
    }
    highest = max((v for _, ys in thin.values() for v in ys), default=1.0)
    top = nice_ceiling(highest * (1.1 if marks else 1))  # their words want room
    layout["yaxis"]["range"] = [0, top]
    svg = _draw_lines(title, thin, x, y, steps, marks, top)
    return Figure({"data": traces, "layout": layout}, svg)


def heat(title: str, frame: pd.DataFrame, *, digits: int = 0) -> Figure:
    """A table whose cells are coloured by value; the names of its index and columns are titles."""
    columns, index = [str(c) for c in frame.columns], [str(i) for i in frame.index]
    values = [[float(v) for v in row] for row in frame.to_numpy()]
    x, y = str(frame.columns.name or ""), str(frame.index.name or "")
    texts = [[f"{v:,.{digits}f}" for v in row] for row in values]
    trace = {
        "type": "heatmap", "x": columns, "y": index, "z": values, "text": texts,
        "texttemplate": "%{text}", "colorscale": [[0, "#eef4fa"], [1, "#5b9bd5"]],
        "showscale": False,
    }
    layout = _layout(title, x, y)
    for axis in ("xaxis", "yaxis"):
        layout[axis]["type"] = "category"
    layout["yaxis"]["autorange"] = "reversed"
    return Figure(
        {"data": [trace], "layout": layout}, _draw_heat(title, values, texts, columns, index, x, y)
    )


def _layout(title: str, x: str, y: str) -> dict[str, Any]:
    return {
        "title": {"text": title, "x": 0.01, "font": {"size": 15}}, "template": "none",
        "width": _WIDTH, "height": _HEIGHT,
        "xaxis": {"title": {"text": x}} | _PLAIN,
        "yaxis": {"title": {"text": y}, "automargin": True} | _PLAIN,
        "margin": {"l": _LEFT, "r": _RIGHT, "t": _TOP, "b": _BOTTOM},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    }


def _thinned(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most so many points, by keeping the highest of each run of neighbours."""
    stride = -(-len(xs) // _MOST_POINTS)
    if stride <= 1:
        return [round(float(v), 4) for v in xs], [round(float(v), 4) for v in ys]
    kept = [
        max(range(i, min(i + stride, len(xs))), key=lambda k: ys[k])
        for i in range(0, len(xs), stride)
    ]
    return [round(float(xs[i]), 4) for i in kept], [round(float(ys[i]), 4) for i in kept]


def _draw_lines(
    title: str, series: Series, x: str, y: str, steps: bool, marks: Mapping[float, str],
    top: float,
) -> str:
    every_x = [v for xs, _ in series.values() for v in xs] or [0.0, 1.0]
    low, high = min(every_x), max(every_x)
    canvas = SvgCanvas()
    high = high if high > low else low + 1
    axes = Axes(canvas, _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM, low, high, top)
    axes.levels(ticks(0, top))
    axes.along(x)
    inks = dict(zip(series, cycle(INKS)))
    for name, (xs, ys) in series.items():
        axes.line(xs, ys, inks[name], steps=steps)
    axes.marks(marks, _MARK, rows=4)
    names = legend(_LEFT, _TOP - 12, [(y, FAINT), *inks.items()])
    return page(_WIDTH, _HEIGHT, title, [*canvas.parts, names])


def _draw_heat(
    title: str, values: list[list[float]], texts: list[list[str]], columns: list[str],
    index: list[str], x: str, y: str,
) -> str:
    flat = [v for row in values for v in row]
    low, span = min(flat), (max(flat) - min(flat)) or 1.0
    wide, tall = (_WIDTH - _NAMES - _RIGHT) / len(columns), (_HEIGHT - _TOP - _BOTTOM) / len(index)
    parts = [text(_NAMES - 8, _TOP - 12, y, FAINT, "end")]
    for row, name in enumerate(index):
        upper = _TOP + tall * row
        parts.append(_aside(upper + tall / 2, name, _NAMES))
        for column, words in enumerate(texts[row]):
            left = _NAMES + wide * column
            shade = _shade((values[row][column] - low) / span)
            parts.append(box(left, upper, wide - 1, tall - 1, shade))
            parts.append(text(left + wide / 2, upper + tall / 2 + 4, words, anchor="middle"))
    floor = _HEIGHT - _BOTTOM
    for column, name in enumerate(columns):
        parts.append(text(_NAMES + wide * (column + 0.5), floor + 16, name, FAINT, "middle"))
    parts.append(text((_NAMES + _WIDTH - _RIGHT) / 2, floor + 34, x, FAINT, "middle"))
    return page(_WIDTH, _HEIGHT, title, parts)


def _aside(y: float, words: str, right: float = _LEFT) -> str:
    """Left of the plot."""
    return text(right - 8, y + 4, words, FAINT, "end")


def _shade(share: float) -> str:
    pale, deep = (0xEE, 0xF4, 0xFA), (0x5B, 0x9B, 0xD5)
    mixed = (round(a + (b - a) * share) for a, b in zip(pale, deep, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
