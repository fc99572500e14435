"""The charts as a plotly Figure: one subplot per panel, knob changes as dotted lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmserve.core.quantities import S, unit_of
from llmserve.dashboard.panels import COLUMNS, Panel, shown_in
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
    drawn = [
        shown_in(panel, values[:, [COLUMNS.index(line.column) for line in panel.lines]])
        for panel in panels
    ]
    titles = [f"{panel.title} ({unit})" for panel, (unit, _) in zip(panels, drawn, strict=True)]
    unit = max(unit_of(float(times.max(initial=0.0))), S, key=lambda u: u.seconds)
    figure = make_subplots(rows, _PER_ROW, subplot_titles=titles, shared_xaxes="all")
    for i, panel in enumerate(panels):
        cell = {"row": i // _PER_ROW + 1, "col": i % _PER_ROW + 1}
        for k, (ink, line) in enumerate(zip(_INKS, panel.lines, strict=False)):
            trace = _trace(panel, line.label, times / unit.seconds, drawn[i][1][:, k], ink)
            figure.add_trace(trace, **cell)
        figure.update_yaxes(rangemode="tozero", **cell)
    for mark in marks:
        at = (mark.t - t0) / unit.seconds
        figure.add_vline(
            x=at, line_width=1, line_dash="dot", line_color="#616161",
            annotation_text=", ".join(f"{k}={after}" for k, (_, after) in mark.changed.items()),
            annotation_font_size=9, row=1, col=1,
        )
        figure.add_vline(x=at, line_width=1, line_dash="dot", line_color="#616161")
    figure.update_xaxes(title_text=f"time ({unit.name})", row=rows)
    figure.update_xaxes(exponentformat="none", separatethousands=True)
    figure.update_yaxes(exponentformat="none", separatethousands=True)
    figure.update_layout(template="plotly_white", height=260 * rows, showlegend=False)
    return figure


def _trace(
    panel: Panel, label: str, times: NDArray[np.float64], values: NDArray[np.float32], ink: str
) -> dict[str, Any]:
    kept = _kept(values)
    return {
        "type": "scatter", "mode": "lines", "name": f"{panel.title}, {label}",
        "x": [round(float(t), 4) for t in times[kept]],
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
