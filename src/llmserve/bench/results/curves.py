"""What a run's samples look like, in few numbers: enough to draw, small enough to store."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BINS, SHORTEST_S = 60, 0.05
"""Of a timeline: at most so many, none so short that it holds a step or two."""


class Moment(msgspec.Struct, frozen=True, array_like=True):
    """A stretch of the run that begins `t_s` after its start."""

    t_s: float
    tokens_per_s: float
    ttft_s: float | None
    """Mean of those whose first token came in it."""


def quantiles(values: NDArray[np.float64]) -> list[float]:
    """0 % to 100 % in steps of 1 %; nothing where there is nothing."""
    import numpy as np

    values = values[~np.isnan(values)]
    if not values.size:
        return []
    return [float(v) for v in np.percentile(values, range(101))]


def timeline(
    firsts: NDArray[np.float64], gaps: NDArray[np.float64], began: float, ended: float
) -> list[Moment]:
    """`firsts`: t and TTFT; `gaps`: t, gap and tokens."""
    import numpy as np

    if not (math.isfinite(began) and ended > began and len(firsts)):
        return []
    bins = min(BINS, max(1, int((ended - began) / SHORTEST_S)))
    edges = np.linspace(began, ended, bins + 1)
    width = (ended - began) / bins
    starts, _ = np.histogram(firsts[:, 0], edges)
    waits, _ = np.histogram(firsts[:, 0], edges, weights=firsts[:, 1])
    tokens, _ = np.histogram(gaps[:, 0], edges, weights=gaps[:, 2])
    return [
        Moment(
            float(edges[i] - began),
            float((tokens[i] + starts[i]) / width),
            float(waits[i] / starts[i]) if starts[i] else None,
        )
        for i in range(bins)
    ]
