"""Fits a `StepTimeModel` to observed steps: terms by robust least squares, none below zero, and
the quantiles of what is left over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmserve.engines.simulator.step_model import (
    COUNTS,
    RANKS,
    Spread,
    StepTerm,
    StepTimeModel,
    StepWork,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Term = tuple[str, int]
BASE: tuple[Term, ...] = (
    ("step", 1), ("prefill", 1), ("decode", 1), ("decode_row", 1), ("prefill_token", 1),
    ("kv_token", 1),
)  # fmt: skip
"""Terms that every model may have."""
SHAPES: tuple[Term, ...] = (
    ("prefill_row", 1), ("pair", 1), ("graph_row", 1),
    *(("first_decode_row", at) for at in (2, 4, 8, 16, 32, 64)),
    *(("first_prefill_token", at) for at in (16, 32, 64, 128, 256, 512)),
    *(("first_row", at) for at in (2, 4, 8, 16, 32, 64)),
    *(("row_block", at) for at in (8, 16, 32, 64, 128, 256)),
)  # fmt: skip
"""Terms that an engine's shape may ask for: taken one by one, as far as they explain something."""
_MOST_SHAPES = 4
_GAIN = 0.02
"""A term is taken where the loss falls by this share."""
_EXACT = 1e-9
_ROUNDS = 8
_HUBER = 1.5


def fit(
    works: Sequence[StepWork], seconds: Sequence[float], indices: Sequence[int]
) -> StepTimeModel:
    """Of steps with these works and times; neighbours have indices that follow each other."""
    import numpy as np

    y = np.asarray(seconds, float)
    columns = {
        (name, at): np.array([COUNTS[name](work, at) for work in works], float)
        for name, at in (*BASE, *SHAPES)
    }
    chosen = list(BASE)
    found, loss = _solve(columns, chosen, y)
    for _ in range(_MOST_SHAPES):
        if loss < _EXACT:
            break
        tried = [
            (_solve(columns, [*chosen, term], y), term) for term in SHAPES if term not in chosen
        ]
        (better, best_loss), term = min(tried, key=lambda one: one[0][1])
        if best_loss > loss * (1 - _GAIN):
            break
        chosen.append(term)
        found, loss = better, best_loss
    terms = tuple(
        StepTerm(name, float(value), at)
        for (name, at), value in zip(chosen, found, strict=True)
        if value > 0
    )
    return _with_spread(StepTimeModel(terms), works, y, np.asarray(indices))


def _solve(
    columns: dict[Term, NDArray[np.float64]], chosen: list[Term], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Coefficients, and the mean Huber loss of relative errors; outliers count less each round."""
    import numpy as np

    x = np.stack([columns[term] for term in chosen], axis=1)
    predicted, outlying = y, np.ones_like(y)
    found, loss = np.zeros(len(chosen)), np.inf
    for _ in range(_ROUNDS):
        weights = outlying / predicted
        found = nonnegative(x * weights[:, None], y * weights)
        predicted = np.maximum(x @ found, 1e-3 * y)
        errors = np.abs(y / predicted - 1)
        scale = max(1.4826 * float(np.median(errors)), 1e-12)
        cut = _HUBER * scale
        outlying = np.sqrt(np.minimum(1.0, cut / np.maximum(errors, 1e-300)))
        before, loss = loss, float(np.mean(np.minimum(errors, 10 * scale)))
        if abs(before - loss) <= 1e-4 * loss:
            break
    return found, loss


def nonnegative(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The x >= 0 for which |ax - b| is least (Lawson and Hanson)."""
    import numpy as np

    scales = np.sqrt((a * a).sum(axis=0))
    scales[scales == 0] = 1.0
    scaled = a / scales
    gram, target = scaled.T @ scaled, scaled.T @ b
    size = len(target)
    x, active = np.zeros(size), np.zeros(size, bool)
    tolerance = 1e-12 * max(1.0, float(np.abs(target).max()))
    for _ in range(10 * size):
        slopes = np.where(active, -np.inf, target - gram @ x)
        best = int(np.argmax(slopes))
        if slopes[best] <= tolerance:
            break
        active[best] = True
        while True:
            trial = np.zeros(size)
            trial[active] = np.linalg.lstsq(scaled[:, active], b, rcond=1e-10)[0]
            low = active & (trial <= 0)
            if not low.any():
                x = trial
                break
            steps = x[low] / np.maximum(x[low] - trial[low], 1e-300)
            x = x + float(steps.min()) * (trial - x)
            active &= x > 1e-15
            x[~active] = 0.0
            if not active.any():
                break
    found: NDArray[np.float64] = x / scales
    return found


def _with_spread(
    model: StepTimeModel, works: Sequence[StepWork], y: NDArray[np.float64],
    indices: NDArray[np.int64],
) -> StepTimeModel:  # fmt: skip
    import numpy as np

    predicted = np.array([model.seconds(work) for work in works])
    prefill = np.array([work.prefill_rows > 0 for work in works])
    ratios = y / np.maximum(predicted, 1e-12)
    spreads, normal = [], np.zeros_like(y)
    for kind in (False, True):
        mine = prefill == kind
        spreads.append(_spread(ratios[mine], predicted[mine]))
        normal[mine] = _scores(ratios[mine])
    after = np.flatnonzero(np.diff(indices) == 1)
    correlation = 0.0
    if len(after) > 2 and float(np.ptp(ratios)) > 1e-9:
        products = normal[after] * normal[after + 1]
        correlation = float(np.clip(products.mean() / max(float(normal.var()), 1e-12), 0, 0.99))
    return StepTimeModel(model.terms, spreads[0], spreads[1], correlation)


def _spread(ratios: NDArray[np.float64], predicted: NDArray[np.float64]) -> Spread:
    import numpy as np

    if len(ratios) == 0 or float(np.abs(ratios - 1).max()) < _EXACT:
        return Spread()
    quantiles = tuple(float(value) for value in np.quantile(ratios, RANKS))
    return Spread(quantiles, float((ratios * predicted).sum() / predicted.sum()))


def _scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normal scores of their ranks."""
    from statistics import NormalDist

    import numpy as np

    places = (np.argsort(np.argsort(values)) + 0.5) / max(1, len(values))
    inverse = NormalDist().inv_cdf
    return np.array([inverse(float(place)) for place in places])
