"""What a calibration predicts for each setting, so that few of them need be tried live."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llmserve.bench.load.workload import Load
from llmserve.bench.results.report import Report
from llmserve.bench.results.slo import Slo
from llmserve.lab.simulation import simulate

if TYPE_CHECKING:
    from llmserve.lab.calibration.calibration import Calibration

Predict = Callable[[Load, Mapping[str, Any]], Report | None]
"""The report of a load under knobs, None where it cannot be told. It blocks for milliseconds."""


def predictor(calibration: Calibration, slo: Slo | None) -> Predict:
    """Simulates with the measured step times, outside of their valid range too: what it proposes
    is tried live before anything is said of it."""
    options = calibration.engine_options()

    def predict(load: Load, knobs: Mapping[str, Any]) -> Report | None:
        values = {**calibration.knobs, **knobs}
        if values.get("policy") == "custom":
            return None
        try:
            return simulate(load, values, slo=slo, progress=False, **options).report
        except (ValueError, RuntimeError):
            return None

    return predict
