"""The panels as a PNG without a browser, for notebooks that are read without a kernel."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmserve.core.quantities import moment
from llmserve.dashboard.panels import COLUMNS, Panel, shown_in
from llmserve.plots.axes import Axes, Point
from llmserve.plots.svg import FAINT, TEXT, nice_ceiling

if TYPE_CHECKING:
    from PIL import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

_WIDTH, _HEIGHT, _PER_ROW = 400, 220, 3
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 44, 34
_INKS = ("#1f77b4", "#e07b00", "#2e9e44", "#8a4fbf", "#d1495b")
_SCALE = 2  # drawn at twice the size: text stays sharp on a dense screen

Times = NDArray[np.float64]
Values = NDArray[np.float32]


def to_png(panels: Sequence[Panel], times: Times, values: Values, marks: Sequence[float]) -> bytes:
    """One small chart per brief panel, knob changes as dashed lines."""
    from PIL import Image, ImageDraw, ImageFont

    panels = [panel for panel in panels if panel.brief]
    rows = -(-len(panels) // _PER_ROW)
    size = (_WIDTH * _PER_ROW * _SCALE, _HEIGHT * rows * _SCALE)
    image = Image.new("RGB", size, "white")
    font = ImageFont.load_default(11 * _SCALE)
    for i, panel in enumerate(panels):
        corner = (i % _PER_ROW * _WIDTH, i // _PER_ROW * _HEIGHT)
        _draw(PngCanvas(ImageDraw.Draw(image), corner, font), panel, times, values, marks)
    out = io.BytesIO()
    image.save(out, "PNG")
    return lighten(out.getvalue())


def lighten(png: bytes) -> bytes:
    """The same picture in few colours: a fifth of the bytes that a browser writes."""
    from PIL import Image

    out = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(64, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def _draw(
    canvas: PngCanvas, panel: Panel, times: Times, values: Values, marks: Sequence[float]
) -> None:
    columns = [COLUMNS.index(line.column) for line in panel.lines]
    unit, shown = shown_in(panel, values[:, columns])
    canvas.text(_LEFT - 44, 17, f"{panel.title} ({unit})")
    if not np.isfinite(shown).any():
        canvas.text(_LEFT, _HEIGHT // 2, "nothing measured yet")
        return
    high = nice_ceiling(float(np.nanmax(shown)))
    start, end = float(times[0]), max(float(times[-1]), float(times[0]) + 1.0)
    floor = _HEIGHT - _BOTTOM
    axes = Axes(canvas, _LEFT, _WIDTH - _RIGHT, _TOP, floor, start, end, high)
    axes.levels(axes.halves())
    canvas.text(axes.left, floor + 16, moment(start), FAINT)
    canvas.text(axes.right, floor + 16, moment(end), FAINT, "end")
    axes.marks(dict.fromkeys(marks, ""))
    xs = [float(t) for t in times]
    for i, line in enumerate(panel.lines):
        ink = _INKS[i % len(_INKS)]
        axes.line(xs, [float(v) for v in shown[:, i]], ink, dots=False)
        canvas.text(_LEFT + 300 // len(panel.lines) * i, 34, line.label, ink)


class PngCanvas:
    """A corner of a picture, drawn by pillow; coordinates are in unscaled pixels from there."""

    def __init__(self, draw: ImageDraw.ImageDraw, corner: tuple[int, int], font: Font) -> None:
        self._draw = draw
        self._corner = corner
        self._font = font

    def path(self, points: Sequence[Point], ink: str, width: float = 1, dash: str = "") -> None:
        """`dash`, as in SVG: lengths drawn and left out, along a straight line of two points."""
        if len(points) < 2:
            return
        pieces = [points] if not dash else _dashes(points[0], points[-1], dash)
        for piece in pieces:
            self._draw.line([self._at(p) for p in piece], fill=ink, width=int(width * _SCALE))

    def dot(self, x: float, y: float, ink: str) -> None:
        self._draw.circle(self._at((x, y)), 2.5 * _SCALE, fill=ink)

    def text(self, x: float, y: float, words: str, ink: str = TEXT, anchor: str = "") -> None:
        sides = {"": "ls", "middle": "ms", "end": "rs"}
        at = self._at((x, y))
        self._draw.text(at, words, fill=ink, font=self._font, anchor=sides[anchor])

    def _at(self, point: Point) -> Point:
        return (self._corner[0] + point[0]) * _SCALE, (self._corner[1] + point[1]) * _SCALE


def _dashes(start: Point, end: Point, dash: str) -> list[list[Point]]:
    on, off = map(float, dash.split())
    length = ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5

    def along(distance: float) -> Point:
        share = min(distance / length, 1.0) if length else 0.0
        return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])

    count = int(length // (on + off)) + 1
    return [[along(i * (on + off)), along(i * (on + off) + on)] for i in range(count)]
