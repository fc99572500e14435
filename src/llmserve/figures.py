"""Small figures for notebooks: plotly where a page can draw it, a PNG where none can.

A stored notebook keeps both in one output, a few kilobytes each, so that it shows the same
picture on a page without a kernel and without plotly.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from PIL import ImageDraw

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Label to x and y."""

INKS = ("#1f77b4", "#e07b00", "#2e9e44", "#8a4fbf")
_MOST_POINTS = 500
_WIDTH, _HEIGHT, _SCALE = 720, 300, 2
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 52, 44
_TEXT, _GRID, _MARK = "#333333", "#dddddd", "#c03030"


@dataclass(frozen=True)
class Figure:
    """Show it as a cell's last line."""

    plotly: dict[str, Any]
    """A plotly figure as JSON: `plotly.graph_objects.Figure(figure.plotly)` goes on from there."""
    png: bytes

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        return {
            "application/vnd.plotly.v1+json": self.plotly,
            "image/png": base64.b64encode(self.png).decode("ascii"),
            "text/plain": f"<figure: {self.plotly['layout']['title']['text']}>",
        }


def lines(
    title: str, series: Series, *, x: str, y: str, steps: bool = False,
    marks: Mapping[float, str] | None = None,
) -> Figure:
    """One line per series; `steps` holds a value until the next; `marks` are labelled x values."""
    marks = marks or {}
    thin = {name: _thinned(xs, ys) for name, (xs, ys) in series.items()}
    traces = [
        {
            "type": "scatter", "mode": "lines", "name": name, "x": xs, "y": ys,
            "line": {"color": ink, "width": 1.5, "shape": "hv" if steps else "linear"},
        }
        for ink, (name, (xs, ys)) in zip(INKS, thin.items(), strict=False)
    ]
    layout = _layout(title, x, y) | {
        "shapes": [
            {"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1,
             "line": {"color": _MARK, "width": 1, "dash": "dash"}}
            for at in marks
        ],
        "annotations": [
            {"x": at, "y": 1, "yref": "paper", "text": text, "showarrow": False,
             "xanchor": "left", "font": {"color": _MARK}}
            for at, text in marks.items()
        ],
    }
    png = _draw_lines(title, thin, x, y, steps, marks)
    return Figure({"data": traces, "layout": layout}, png)


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
        "title": {"text": title}, "template": "none", "width": _WIDTH, "height": _HEIGHT + 60,
        "xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}, "rangemode": "tozero"},
        "margin": {"l": _LEFT, "r": _RIGHT, "t": 60, "b": 50}, "legend": {"orientation": "h"},
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


class _Canvas:
    """Pixels of the unscaled picture; drawn at twice the size, so that text stays sharp."""

    def __init__(self, title: str) -> None:
        from PIL import Image, ImageDraw, ImageFont

        self._image = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), "white")
        self._draw: ImageDraw.ImageDraw = ImageDraw.Draw(self._image)
        self._font = ImageFont.load_default(12 * _SCALE)
        self._big = ImageFont.load_default(15 * _SCALE)
        self._draw.text((12 * _SCALE, 8 * _SCALE), title, fill=_TEXT, font=self._big)

    def text(self, x: float, y: float, text: str, ink: str = _TEXT, anchor: str = "la") -> None:
        known = text.replace("→", "to")  # the font that Pillow brings has no arrows
        self._draw.text((x * _SCALE, y * _SCALE), known, fill=ink, font=self._font, anchor=anchor)

    def line(self, points: list[tuple[float, float]], ink: str, width: float = 1) -> None:
        if len(points) > 1:
            scaled = [(px * _SCALE, py * _SCALE) for px, py in points]
            self._draw.line(scaled, fill=ink, width=int(width * _SCALE))

    def box(self, x: float, y: float, width: float, height: float, ink: str) -> None:
        corners = (x * _SCALE, y * _SCALE, (x + width) * _SCALE - 2, (y + height) * _SCALE - 2)
        self._draw.rectangle(corners, fill=ink)

    def png(self) -> bytes:
        out = io.BytesIO()
        self._image.quantize(64).save(out, "PNG", optimize=True)
        return out.getvalue()


def _draw_lines(
    title: str, series: Series, x: str, y: str, steps: bool, marks: Mapping[float, str]
) -> bytes:
    canvas = _Canvas(title)
    every_x = [v for xs, _ in series.values() for v in xs] or [0.0, 1.0]
    low, high = min(every_x), max(max(every_x), min(every_x) + 1e-9)
    top = nice_ceiling(max((v for _, ys in series.values() for v in ys), default=1.0))
    floor, width = _HEIGHT - _BOTTOM, _WIDTH - _LEFT - _RIGHT

    def place(px: float, py: float) -> tuple[float, float]:
        return _LEFT + (px - low) / (high - low) * width, floor - py / top * (floor - _TOP)

    for k in range(5):
        level = top * k / 4
        canvas.line([place(low, level), place(high, level)], _GRID)
        canvas.text(_LEFT - 6, place(low, level)[1], f"{level:,.4g}", anchor="rm")
        at = low + (high - low) * k / 4
        canvas.text(place(at, 0)[0], floor + 6, f"{at:,.4g}", anchor="ma")
    canvas.text(_LEFT + width / 2, floor + 24, x, anchor="ma")
    for i, (name, (xs, ys)) in enumerate(series.items()):
        points = [place(px, py) for px, py in zip(xs, ys, strict=True)]
        if steps:
            points = [p for a, b in pairwise(points) for p in (a, (b[0], a[1]))] + points[-1:]
        canvas.line(points, INKS[i % len(INKS)], 1.5)
        canvas.text(_LEFT + 130 * i, 32, f"{name}" if i else f"{y}: {name}", INKS[i % len(INKS)])
    for at, text in marks.items():
        px, _ = place(at, 0)
        canvas.line([(px, _TOP), (px, floor)], _MARK)
        canvas.text(px + 4, _TOP, text, _MARK)
    return canvas.png()


def _draw_heat(
    title: str, values: list[list[float]], texts: list[list[str]], columns: list[str],
    index: list[str], x: str, y: str,
) -> bytes:
    canvas = _Canvas(title)
    flat = [v for row in values for v in row]
    low, span = min(flat), (max(flat) - min(flat)) or 1.0
    wide, tall = (_WIDTH - 130) / len(columns), (_HEIGHT - _TOP - _BOTTOM) / len(index)
    canvas.text(12, 32, y)
    for row, name in enumerate(index):
        middle = _TOP + tall * (row + 0.5)
        canvas.text(104, middle, name, anchor="rm")
        for column, text in enumerate(texts[row]):
            share = (values[row][column] - low) / span
            left = 114 + wide * column
            canvas.box(left, _TOP + tall * row, wide, tall, _shade(share))
            canvas.text(left + wide / 2, middle, text, anchor="mm")
    for column, name in enumerate(columns):
        canvas.text(114 + wide * (column + 0.5), _HEIGHT - _BOTTOM + 6, name, anchor="ma")
    canvas.text(114 + wide * len(columns) / 2, _HEIGHT - 20, x, anchor="ma")
    return canvas.png()


def _shade(share: float) -> str:
    pale, deep = (0xEE, 0xF4, 0xFA), (0x5B, 0x9B, 0xD5)
    mixed = (round(a + (b - a) * share) for a, b in zip(pale, deep, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def nice_ceiling(value: float) -> float:
    """The next round figure: the axis ends there, and half of it can be read too."""
    if value <= 0:
        return 1.0
    decade = 10.0 ** math.floor(math.log10(value))
    tops = (step * decade for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10))
    return next(top for top in tops if value <= top * 1.0000001)  # 10 · 10ⁿ may round below it
