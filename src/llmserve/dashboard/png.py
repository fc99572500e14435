"""The panels as a PNG without a browser, for notebooks that are read without a kernel."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmserve.core.quantities import moment, tick
from llmserve.dashboard.panels import COLUMNS, Panel, shown_in
from llmserve.plots.svg import nice_ceiling

if TYPE_CHECKING:
    from PIL import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

_WIDTH, _HEIGHT, _PER_ROW = 400, 220, 3
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 44, 34
_INKS = ("#1f77b4", "#e07b00", "#2e9e44", "#8a4fbf", "#d1495b")
_TEXT, _GRID, _MARK = "#333333", "#dddddd", "#999999"
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
    bold = ImageFont.load_default(13 * _SCALE)
    for i, panel in enumerate(panels):
        corner = (i % _PER_ROW * _WIDTH, i // _PER_ROW * _HEIGHT)
        _PanelRect(ImageDraw.Draw(image), corner, font, bold).draw(panel, times, values, marks)
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


class _PanelRect:
    """One panel's rectangle; coordinates are in unscaled pixels from its corner."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, corner: tuple[int, int], font: Font, bold: Font
    ) -> None:
        self._draw = draw
        self._corner = corner
        self._font = font
        self._bold = bold

    def draw(self, panel: Panel, times: Times, values: Values, marks: Sequence[float]) -> None:
        columns = [COLUMNS.index(line.column) for line in panel.lines]
        unit, shown = shown_in(panel, values[:, columns])
        self._text((_LEFT - 44, 6), f"{panel.title} ({unit})", bold=True)
        if not np.isfinite(shown).any():
            self._text((_LEFT, _HEIGHT // 2), "nothing measured yet")
            return
        high = nice_ceiling(float(np.nanmax(shown)))
        start, end = float(times[0]), max(float(times[-1]), float(times[0]) + 1.0)
        self._axes(start, end, high)
        for t in marks:
            if start <= t <= end:
                self._mark(self._x(t, start, end))
        for i, line in enumerate(panel.lines):
            xs = [self._x(float(t), start, end) for t in times]
            ink = _INKS[i % len(_INKS)]
            self._line(xs, [float(v) for v in shown[:, i]], high, ink)
            self._text((_LEFT + 300 // len(panel.lines) * i, 24), line.label, ink=ink)

    def _axes(self, start: float, end: float, high: float) -> None:
        for k in range(3):
            y = self._y(high * k / 2, high)
            self._stroke([(_LEFT, y), (_WIDTH - _RIGHT, y)], _GRID)
            self._text((_LEFT - 6, y), tick(high * k / 2), anchor="rm")
        floor = _HEIGHT - _BOTTOM + 6
        self._text((_LEFT, floor), moment(start), anchor="la")
        self._text((_WIDTH - _RIGHT, floor), moment(end), anchor="ra")

    def _mark(self, x: float) -> None:
        for y in range(_TOP, _HEIGHT - _BOTTOM, 6):
            self._stroke([(x, y), (x, y + 3)], _MARK)

    def _line(self, xs: list[float], values: list[float], high: float, ink: str) -> None:
        run: list[tuple[float, float]] = []
        for x, value in zip(xs, values, strict=True):
            if math.isfinite(value):
                run.append((x, self._y(value, high)))
                continue
            self._stroke(run, ink, 1.5)
            run = []
        self._stroke(run, ink, 1.5)

    def _x(self, t: float, start: float, end: float) -> float:
        return _LEFT + (t - start) / (end - start) * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, value: float, high: float) -> float:
        return _HEIGHT - _BOTTOM - value / high * (_HEIGHT - _TOP - _BOTTOM)

    def _at(self, point: tuple[float, float]) -> tuple[float, float]:
        return (self._corner[0] + point[0]) * _SCALE, (self._corner[1] + point[1]) * _SCALE

    def _stroke(self, points: list[tuple[float, float]], ink: str, width: float = 1) -> None:
        if len(points) > 1:
            self._draw.line([self._at(p) for p in points], fill=ink, width=int(width * _SCALE))

    def _text(
        self,
        point: tuple[float, float],
        text: str,
        *,
        bold: bool = False,
        anchor: str = "la",
        ink: str = _TEXT,
    ) -> None:
        font = self._bold if bold else self._font
        self._draw.text(self._at(point), text, fill=ink, font=font, anchor=anchor)
