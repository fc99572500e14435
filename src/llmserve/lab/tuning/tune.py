"""Tune as a cell calls it: it waits, draws the frontier, obeys an interrupt, restores knobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from llmserve.bench.load.workload import Load, Workload
from llmserve.bench.run.cell import make_load, nothing, run_job
from llmserve.bench.run.job import GONE
from llmserve.core.knobs import SPECS, KnobError
from llmserve.core.validation import meant, plain, real
from llmserve.engines.base import EngineError
from llmserve.lab.settings import KnobPanel, Stage, Switch
from llmserve.lab.sweep_result import combinations
from llmserve.lab.tuning.limits import read_limits, read_maximize
from llmserve.lab.tuning.prediction import predictor
from llmserve.lab.tuning.result import TuneResult
from llmserve.lab.tuning.tuning_job import Tuning
from llmserve.plots.live_figure import LiveFigure, shown
from llmserve.serving.runtime import Runtime

if TYPE_CHECKING:
    from llmserve.lab.calibration.calibration import Calibration

BUDGET_S, TRIAL_S = 180.0, 5.0
CALIBRATION_SHARE = 0.1
"""Of the budget, where a calibration needs a load of its own."""
GRID: Mapping[str, Sequence[Any]] = {
    "max_num_seqs": (8, 16, 32, 64),
    "max_num_batched_tokens": (256, 1024, 4096),
    "policy": ("fifo", "shortest_first"),
}
"""Knobs that matter for most loads, with values that engines mostly allow."""

Calibrate = Callable[[float], "Calibration"]
"""Measures a calibration within so many seconds."""


def tune(
    runtime: Runtime,
    stage: Stage,
    load: Load | None = None,
    *,
    slo: Mapping[str, Any] | str | None = None,
    maximize: str = "goodput",
    knobs: Mapping[str, Any] | None = None,
    budget_s: float = BUDGET_S,
    trial_s: float | None = None,
    calibration: Calibration | Literal[False] | None = None,
    calibrate: Calibrate | None = None,
    ceilings: Mapping[str, int] | None = None,
    apply: bool = False,
    warmup: bool = True,
    progress: bool = True,
    **workload: Any,
) -> TuneResult:
    """calibrate: called where no calibration is given, unless that is False; its time is of the
    budget. KnobError or
    ValueError, before anything runs, for what cannot be tried."""
    clock = stage.target.clock
    began = clock.now()
    budget_s = real("budget_s", budget_s, 1, 86_400, "s")
    limits, figure = read_limits(slo), read_maximize(maximize)
    if figure == "goodput_per_s" and limits.of_a_request is None:
        raise ValueError(
            "goodput counts requests within an SLO: give slo={'ttft_p95_ms': 300}, or "
            "maximize='tokens'"
        )
    load = of_trial_length(make_load(load, workload), trial_s)
    grid = combinations(read_grid(stage.panel, knobs, ceilings or {}))
    for values in grid:
        Switch(stage.panel).read(values)  # what is wrong is raised before anything runs
    remarks = []
    if calibration is None and calibrate is not None:
        try:
            calibration = calibrate(max(1.0, CALIBRATION_SHARE * budget_s))
        except (EngineError, ValueError) as error:
            remarks.append(f"nothing was predicted: {error}")
    job = Tuning(
        stage, grid, load, figure=figure, limits=limits, budget_s=budget_s,
        spent_s=clock.now() - began, warmup=warmup, apply=apply, remarks=remarks,
    )  # fmt: skip
    if calibration:
        job.predict(predictor(calibration, limits.of_a_request))
    watch = _redrawing(job, shown(job.result().sketch())) if progress else nothing
    try:
        return run_job(runtime, job, progress=progress, watch=watch)
    finally:
        if not job.applied:
            try:
                runtime.call(job.switch.back())
            except GONE as error:
                job.lose(error)


def read_grid(
    panel: KnobPanel, knobs: Mapping[str, Any] | None, ceilings: Mapping[str, int]
) -> dict[str, list[Any]]:
    """Each knob's values; those of our own within the ceilings, those of the user as they are, for
    the server to refuse with its cure. KnobError for a name that is no knob."""
    present = panel.knobs.as_dict()
    if knobs is None:
        return {
            name: sorted(
                {v for v in (*values, present[name])
                 if not isinstance(v, int) or v <= ceilings.get(name, v)}, key=_order,
            )
            for name, values in GRID.items()
            if panel.lacks(name) is None
        }  # fmt: skip
    for name in knobs:
        if name not in SPECS:
            hint = meant(name, SPECS, called="knobs:")
            raise KnobError(name, f"there is no knob {name!r} to tune{hint}")
    if not knobs:
        raise ValueError("knobs names none to tune: knobs={'max_num_seqs': [8, 16, 32]}")
    found = {}
    for name, values in knobs.items():
        own = plain(values)
        found[name] = own if isinstance(own, list) else [*own] if isinstance(own, tuple) else [own]
    return found


def _order(value: object) -> tuple[str, Any]:
    return type(value).__name__, value


def of_trial_length(load: Load, trial_s: float | None) -> Load:
    """The load as long as a trial shall be; as it is where it says itself when it ends."""
    if not isinstance(load, Workload):
        return load
    if trial_s is not None:
        seconds = real("trial_s", trial_s, 0, 3600, "s", above=True)
        return replace(load, duration_s=seconds, requests=None)
    open_ended = load.duration_s is None and load.requests is None
    return replace(load, duration_s=TRIAL_S) if open_ended else load


def _redrawing(job: Tuning, update: Callable[[LiveFigure], None]) -> Callable[[], None]:
    """What draws the frontier anew, in the cell's own thread, when another trial has ended."""
    drawn = 0

    def watch() -> None:
        nonlocal drawn
        if (done := job.state.runs_done) != drawn:
            drawn = done
            update(job.result().sketch())

    return watch
