"""How well a step-time model fits: measured beside predicted, in classes of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from llmserve.engines.simulator.step_model import StepTimeModel, StepWork

if TYPE_CHECKING:
    from llmserve.plots.figures import Figure

_CLASSES = 24
_FEWEST = 5


class FitClass(msgspec.Struct, frozen=True):
    """Steps that were predicted to take about as long, in seconds."""

    predicted_s: float
    p5_s: float
    p50_s: float
    p95_s: float
    steps: int


class FitReport(msgspec.Struct, frozen=True):
    """Classes by their predicted times, and the errors over all steps."""

    classes: tuple[FitClass, ...] = ()
    bias: float = 0.0
    """Of the sum of all predicted times, relative to the measured ones; tails included."""
    typical_error: float = 0.0
    """Half of the steps are nearer to the model than this, relatively."""
    p95_error: float = 0.0

    def words(self) -> list[str]:
        return [
            f"half of the steps within {self.typical_error:.1%} of the model, 95 % within "
            f"{self.p95_error:.0%}; all of them together {self.bias:+.1%}"
        ]

    def figure(self) -> Figure:
        """Predicted across, measured up: the median, and between what nine in ten steps were."""
        from llmserve.plots.figures import in_unit, lines

        xs = [one.predicted_s for one in self.classes]
        drawn, unit = in_unit(
            {
                "measured, median": (xs, [one.p50_s for one in self.classes]),
                "5 %": (xs, [one.p5_s for one in self.classes]),
                "95 %": (xs, [one.p95_s for one in self.classes]),
                "as predicted": (xs, xs),
            },
            "y",
        )
        drawn, across = in_unit(drawn, "x")
        return lines("Step times", drawn, x=f"predicted ({across})", y=f"measured ({unit})")


def fit_report(
    model: StepTimeModel, works: Sequence[StepWork], seconds: Sequence[float]
) -> FitReport:
    import numpy as np

    predicted = np.array([model.seconds(work) for work in works])
    measured = np.asarray(seconds)
    errors = np.abs(measured / np.maximum(predicted, 1e-12) - 1)
    prefill = np.array([work.prefill_rows > 0 for work in works])
    means = np.where(prefill, model.prefills.mean, model.decodes.mean)
    bias = float((predicted * means).sum() / measured.sum() - 1)
    order = np.argsort(predicted, kind="stable")
    classes = []
    for part in np.array_split(order, min(_CLASSES, max(1, len(order) // _FEWEST))):
        p5, p50, p95 = np.quantile(measured[part], (0.05, 0.5, 0.95)).tolist()
        classes.append(FitClass(float(predicted[part].mean()), p5, p50, p95, len(part)))
    typical, p95_error = np.quantile(errors, (0.5, 0.95)).tolist()
    return FitReport(tuple(classes), bias, typical, p95_error)
