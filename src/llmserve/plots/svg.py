"""SVG by hand: the few marks that a chart is made of, and round figures for its axes."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

INKS = ("#1f77b4", "#e07b00", "#2e9e44", "#8a4fbf")
FEW = 50
"""A line of fewer points shows each of them: a single one is no line yet."""
TEXT, FAINT, GRID = "#212121", "#616161", "#dddddd"


def page(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """The whole picture, on white and under its title."""
    return "".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        text(8, 15, title, size=13),
        *parts,
        "</svg>",
    ))  # fmt: skip


def path(points: Sequence[tuple[float, float]], ink: str, width: float = 1, dash: str = "") -> str:
    places = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<polyline points="{places}" fill="none" stroke="{ink}" stroke-width="{width}"{dashed}/>'
    )


def box(x: float, y: float, width: float, height: float, ink: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{ink}"/>'
    )


def text(
    x: float, y: float, words: str, ink: str = TEXT, anchor: str = "", size: int = 11
) -> str:
    placed = f' text-anchor="{anchor}"' if anchor else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{ink}" font-size="{size}"{placed}>'
        f"{html.escape(words)}</text>"
    )


def legend(x: float, y: float, words: Sequence[tuple[str, str]]) -> str:
    """Words and their inks, one behind the other."""
    parts = [
        f'<tspan dx="{14 if i else 0}" fill="{ink}">{html.escape(each)}</tspan>'
        for i, (each, ink) in enumerate(words)
    ]
    return f'<text x="{x:.1f}" y="{y:.1f}">{"".join(parts)}</text>'


def ticks(start: float, end: float) -> list[float]:
    """Round values, some four of them."""
    rough = (end - start) / 4
    step = next(s for s in (10, 5, 2, 1) if s * _decade(rough) <= rough * 1.0001) * _decade(rough)
    return [k * step for k in range(math.ceil(start / step), math.floor(end / step) + 1)]


def nice_ceiling(value: float) -> float:
    """The next round figure: the axis ends there, and half of it can be read too."""
    if value <= 0:
        return 1.0
    decade = 10.0 ** math.floor(math.log10(value))
    tops = (step * decade for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10))
    return next(top for top in tops if value <= top * 1.0000001)  # 10 · 10ⁿ may round below it


def _decade(value: float) -> float:
    return float(10.0 ** math.floor(math.log10(value)))


class SvgCanvas:
    """Collects what is drawn as SVG elements, in `parts`."""

    def __init__(self) -> None:
        self.parts = list[str]()

    def path(
        self, points: Sequence[tuple[float, float]], ink: str, width: float = 1, dash: str = ""
    ) -> None:
        self.parts.append(path(points, ink, width, dash))

    def dot(self, x: float, y: float, ink: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{ink}"/>')

    def text(self, x: float, y: float, words: str, ink: str = TEXT, anchor: str = "") -> None:
        self.parts.append(text(x, y, words, ink, anchor))
