"""Validate a calibration: predict held-out loads, then run each twice on identical arrivals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import msgspec

from llmserve.bench.load.workload import Load, Workload
from llmserve.bench.results.report import Report
from llmserve.bench.results.slo import Slo, parse_slo
from llmserve.bench.run.cell import live, nothing, run_job
from llmserve.bench.run.job import GONE, Job
from llmserve.core.events import Event, EventBus
from llmserve.core.validation import real
from llmserve.lab.calibration.calibration import Calibration
from llmserve.lab.calibration.fit_report import fit_report
from llmserve.lab.calibration.observed_steps import ObservedSteps
from llmserve.lab.calibration.valid_range import CalibrationError
from llmserve.lab.settings import Stage, Switch
from llmserve.lab.what_if.errors import HeldOut, HeldOutErrors, figures_of
from llmserve.observe.requests import RequestLog
from llmserve.observe.steps import StepLog
from llmserve.serving.runtime import Runtime

BUDGET_S = 40.0
SHARES = (0.40, 0.70, 0.95)
"""Of the measured capacity: the rates of the held-out loads."""
RUNS = 2
SEED = 7_919
"""No load of a calibration has it."""
_LOG = 1_000_000


class Validating(Job[HeldOutErrors]):
    """Closed loop first, whose rate is the capacity; then open loops at shares of it."""

    def __init__(
        self, stage: Stage, model: Calibration, load: Workload | None, *, each_s: float,
        given: Sequence[Load], knobs: Mapping[str, object], slo: Slo | None,
    ) -> None:  # fmt: skip
        """given: these loads in place of closed and open ones made of `load`."""
        self._stage, self._model, self._slo = stage, model, slo
        self._switch = Switch(stage.panel)
        self._setting = self._switch.read(knobs)
        self._knobs = differing(self._setting.knobs.as_dict(), model.knobs)
        model.check(self._knobs)
        self._given, self._each_s = given, each_s
        self._shape = load or held_out_shape(model)
        self._found: list[HeldOut] = []
        self._capacity: float | None = None
        super().__init__(RUNS * (len(given) or 1 + len(SHARES)), None)

    async def run(self) -> HeldOutErrors:
        try:
            await self._switch.to(self._setting)
            await self.warm_up(self._stage.target, self._given[0] if self._given else self._shape)
            for load in self._given:
                await self._one(getattr(load, "source", "as given"), load)
            if not self._given:
                await self._shares()
        finally:
            try:
                await self._switch.back()
            except GONE as error:
                self.lose(error)
        return self.result()

    async def _shares(self) -> None:
        clients = self._setting.knobs.max_num_seqs
        closed = replace(
            self._shape, rate=None, concurrency=clients, duration_s=self._each_s, seed=SEED
        )
        runs = await self._one("closed loop", closed)
        if not runs:
            return
        capacity = sum(run.requests_per_s for run in runs) / len(runs)
        self._capacity = sum(run.generated_tokens_per_s for run in runs) / len(runs)
        for number, share in enumerate(SHARES, start=1):
            opened = replace(
                self._shape, concurrency=None, rate=share * capacity, duration_s=self._each_s,
                seed=SEED + number,
            )  # fmt: skip
            await self._one(f"{share:.0%}", opened)

    async def _one(self, name: str, load: Load) -> list[Report]:
        runs: list[Report] = []
        logs = StepLog(_LOG), RequestLog(_LOG)
        with attached(self._stage.target.bus, logs):
            for run in range(RUNS):
                if not self.stopped:
                    words = f"held out {name}, run {run + 1} of {RUNS}"
                    runs.append(await self.measure(words, self._stage.target, load, self._slo))
        runs = [run for run in runs if not run.interrupted and run.n]
        if runs:
            predicted = self._model.simulate(load, self._knobs, slo=self._slo, progress=False)
            loop = "open" if load.clients is None else "closed"
            self._found.append(
                HeldOut(
                    name=name, load=str(load), loop=loop,  # type: ignore[arg-type]  # one of two
                    predicted=figures_of(predicted.report),
                    live=tuple(figures_of(run) for run in runs),
                    steps_error=self._steps_error(*logs),
                )
            )  # fmt: skip
        return runs

    def _steps_error(self, steps: StepLog, requests: RequestLog) -> float | None:
        seen = ObservedSteps()
        seen.extend(steps.records(), requests.rows())
        if not seen.works:
            return None
        return fit_report(self._model.steps, seen.works, seen.seconds).bias

    def result(self) -> HeldOutErrors:
        return HeldOutErrors(
            held_out=tuple(self._found), capacity_tokens_per_s=self._capacity, knobs=self._knobs
        )


@contextmanager
def attached(bus: EventBus, folds: Sequence[Callable[[Event], None]]) -> Iterator[None]:
    for fold in folds:
        bus.attach(fold)
    try:
        yield
    finally:
        for fold in folds:
            bus.detach(fold)


def held_out_shape(model: Calibration) -> Workload:
    """Lengths within what the calibration saw."""
    room = max(2, model.limits.max_model_len // 4)
    prompts, replies = (min(8, room), min(128, room)), (min(8, room), min(64, room))
    return Workload(prompt_tokens=prompts, max_tokens=replies)


def differing(knobs: Mapping[str, object], before: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in knobs.items() if before.get(name) != value}


def validate(
    runtime: Runtime,
    stage: Stage,
    model: Calibration,
    loads: Load | Sequence[Load] | None = None,
    *,
    budget_s: float = BUDGET_S,
    knobs: Mapping[str, object] | None = None,
    slo: Slo | str | None = None,
    progress: bool = True,
) -> Calibration:
    """As a cell calls it: waits, shows progress; an interrupt keeps what was measured."""
    budget_s = real("budget_s", budget_s, 4, 3600, "s")
    if (model.model_id, model.engine) != (stage.model, stage.engine):
        raise CalibrationError(
            f"the calibration is of {model.model_id} on {model.engine}, and this server runs "
            f"{stage.model} on {stage.engine}: calibrate this one"
        )
    shape = loads if isinstance(loads, Workload) else None
    given: Sequence[Load] = ()
    if loads is not None and shape is None:
        given = tuple(loads) if isinstance(loads, Sequence) else (loads,)
    each_s = budget_s / (RUNS * (1 + len(SHARES)))
    job = Validating(
        stage, model, shape, each_s=each_s, given=given, knobs=knobs or {}, slo=parse_slo(slo)
    )
    watch = live(job) if progress else nothing
    errors = run_job(runtime, job, progress=progress, watch=watch)
    return msgspec.structs.replace(model, errors=errors)
