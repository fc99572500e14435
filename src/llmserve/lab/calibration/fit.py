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

    Floats = NDArray[np.float64]

Term = tuple[str, int]
BASE: tuple[Term, ...] = (
    ("step", 1), ("prefill", 1), ("decode", 1), ("decode_row", 1), ("prefill_token", 1),
    ("kv_token", 1), ("prefill_row", 1),
)  # fmt: skip
"""Terms that every model may have."""
SHAPES: tuple[Term, ...] = (
    ("pair", 1), ("graph_row", 1),
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
    terms = (*BASE, *SHAPES)
    columns = np.array([[COUNTS[name](work, at) for name, at in terms] for work in works], float)
    chosen = [*range(len(BASE))]
    found, weights, loss = _robust(columns[:, chosen], y)
    for _ in range(_MOST_SHAPES):
        if loss < _EXACT:
            break
        best = _next(columns, chosen, y, weights)
        better, weighed, best_loss = _robust(columns[:, [*chosen, best]], y)
        if best_loss > loss * (1 - _GAIN):
            break
        chosen.append(best)
        found, weights, loss = better, weighed, best_loss
    kept = tuple(
        StepTerm(terms[column][0], float(value), terms[column][1])
        for column, value in zip(chosen, found, strict=True)
        if value > 0
    )
    return _with_spread(StepTimeModel(kept), works, y, np.asarray(indices))


def _next(columns: Floats, chosen: list[int], y: Floats, weights: Floats) -> int:
    """The column that explains the most beside those that are chosen, by these weights."""
    import numpy as np

    a, b = columns * weights[:, None], y * weights
    gram, target = a.T @ a, a.T @ b
    losses = np.full(columns.shape[1], np.inf)
    for column in range(len(BASE), columns.shape[1]):
        if column not in chosen:
            cut = [*chosen, column]
            x = _solve(gram[np.ix_(cut, cut)], target[cut])
            losses[column] = x @ gram[np.ix_(cut, cut)] @ x - 2 * x @ target[cut]
    return int(np.argmin(losses))


def _robust(x: Floats, y: Floats) -> tuple[Floats, Floats, float]:
    """Coefficients, the weights of steps by which they were found, and the mean relative error,
    capped. Steps far from the others count less each round."""
    import numpy as np

    predicted, outlying = y, np.ones_like(y)
    found, weights, loss = np.zeros(x.shape[1]), outlying, np.inf
    for _ in range(_ROUNDS):
        weights = outlying / predicted
        found = nonnegative(x * weights[:, None], y * weights)
        predicted = np.maximum(x @ found, 1e-3 * y)
        errors = np.abs(y / predicted - 1)
        scale = max(1.4826 * float(np.median(errors)), 1e-12)
        outlying = np.sqrt(np.minimum(1.0, _HUBER * scale / np.maximum(errors, 1e-300)))
        before, loss = loss, float(np.mean(np.minimum(errors, 10 * scale)))
        if abs(before - loss) <= 1e-3 * loss:
            break
    return found, weights, loss


def nonnegative(a: Floats, b: Floats) -> Floats:
    """The x >= 0 for which |ax - b| is least."""
    import numpy as np

    x = _solve(a.T @ a, a.T @ b)
    active = x > 0
    if active.any():  # once more, without the squares of its numbers
        scales = np.sqrt((a[:, active] ** 2).sum(axis=0))
        polished = np.linalg.lstsq(a[:, active] / scales, b, rcond=1e-11)[0] / scales
        if (polished >= 0).all():
            x[active] = polished
    return x


def _solve(gram: Floats, target: Floats) -> Floats:
    """As Lawson and Hanson do it, from the products of the columns."""
    import numpy as np

    scales = np.sqrt(np.diag(gram))
    scales[scales == 0] = 1.0
    gram, target = gram / np.outer(scales, scales), target / scales
    size = len(target)
    x, active = np.zeros(size), np.zeros(size, bool)
    tolerance = 1e-11 * max(1.0, float(np.abs(target).max()))
    for _ in range(5 * size):
        slopes = np.where(active, -np.inf, target - gram @ x)
        best = int(np.argmax(slopes))
        if slopes[best] <= tolerance:
            break
        active[best] = True
        while active.any():
            trial = np.zeros(size)
            inner = gram[np.ix_(active, active)]
            trial[active] = np.linalg.lstsq(inner, target[active], rcond=1e-13)[0]
            low = active & (trial <= 0)
            if not low.any():
                x = trial
                break
            steps = x[low] / np.maximum(x[low] - trial[low], 1e-300)
            x = x + float(steps.min()) * (trial - x)
            x[low & (x <= 1e-14)] = 0.0
            active &= x > 1e-14
            x[~active] = 0.0
    found: Floats = x / scales
    return found


def _with_spread(
    model: StepTimeModel, works: Sequence[StepWork], y: Floats,
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


def _spread(ratios: Floats, predicted: Floats) -> Spread:
    import numpy as np

    if len(ratios) == 0 or float(np.abs(ratios - 1).max()) < _EXACT:
        return Spread()
    quantiles = tuple(float(value) for value in np.quantile(ratios, RANKS))
    return Spread(quantiles, float((ratios * predicted).sum() / predicted.sum()))


def spread_of(seconds: Sequence[float], typical_s: float) -> Spread:
    """Of times about a typical one."""
    import numpy as np

    if typical_s <= 0 or not len(seconds):
        return Spread()
    ratios = np.asarray(seconds, float) / typical_s
    return _spread(ratios, np.ones_like(ratios))


def _scores(values: Floats) -> Floats:
    """Normal scores of their ranks."""
    from statistics import NormalDist

    import numpy as np

    places = (np.argsort(np.argsort(values)) + 0.5) / max(1, len(values))
    inverse = NormalDist().inv_cdf
    return np.array([inverse(float(place)) for place in places])
