"""The charts as a plotly Figure: one subplot per panel, knob changes as dotted lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmserve.dashboard.panels import COLUMNS, Panel
from llmserve.dashboard.series import Mark

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PER_ROW = 3
_POINTS = 400
_INKS = ("#1668b3", "#d16a00", "#2e8b3d", "#8a4fbf", "#c2375d", "#00798c", "#8a6d3b")


def to_figure(
    panels: Sequence[Panel],
    times: NDArray[np.float64],
    values: NDArray[np.float32],
    marks: Sequence[Mark],
    t0: float,
) -> go.Figure:
    """At most so many points a line: of each run of neighbours the lowest and the highest."""
    from plotly.subplots import make_subplots

    rows = -(-len(panels) // _PER_ROW)
    titles = [f"{panel.title} ({panel.unit})" for panel in panels]
    figure = make_subplots(rows, _PER_ROW, subplot_titles=titles, shared_xaxes="all")
    for i, panel in enumerate(panels):
        at = {"row": i // _PER_ROW + 1, "col": i % _PER_ROW + 1}
        for ink, line in zip(_INKS, panel.lines, strict=False):
            trace = _trace(panel, line.label, times, values[:, COLUMNS.index(line.column)], ink)
            figure.add_trace(trace, **at)
        figure.update_yaxes(rangemode="tozero", **at)
    for mark in marks:
        figure.add_vline(
            x=mark.t - t0, line_width=1, line_dash="dot", line_color="#616161",
            annotation_text=", ".join(f"{k}={after}" for k, (_, after) in mark.changed.items()),
            annotation_font_size=9, row=1, col=1,
        )
        figure.add_vline(x=mark.t - t0, line_width=1, line_dash="dot", line_color="#616161")
    figure.update_xaxes(title_text="time (s)", row=rows)
    figure.update_layout(template="plotly_white", height=260 * rows, showlegend=False)
    return figure


def _trace(
    panel: Panel, label: str, times: NDArray[np.float64], values: NDArray[np.float32], ink: str
) -> dict[str, Any]:
    kept = _kept(values)
    return {
        "type": "scatter", "mode": "lines", "name": f"{panel.title}, {label}",
        "x": [round(float(t), 3) for t in times[kept]],
        "y": [None if np.isnan(v) else float(v) for v in values[kept]],
        "line": {"color": ink, "width": 1.5, "shape": "hv" if panel.step else "linear"},
    }  # fmt: skip


def _kept(values: NDArray[np.float32]) -> list[int]:
    width = -(-2 * len(values) // _POINTS)
    if width <= 2:
        return list(range(len(values)))
    found: set[int] = set()
    for start in range(0, len(values), width):
        part = values[start : start + width]
        if np.isnan(part).all():
            found.add(start)
        else:
            found |= {start + int(np.nanargmin(part)), start + int(np.nanargmax(part))}
    return sorted(found)
