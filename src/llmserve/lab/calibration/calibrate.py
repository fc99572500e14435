"""Calibrate a live server: from its tape, and from a short load where that tells too little."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from llmserve.bench.load.workload import Load, Workload
from llmserve.bench.run.cell import run_job
from llmserve.bench.run.job import GONE, Job
from llmserve.bench.run.process import usable_cores
from llmserve.core.events import EventBus
from llmserve.core.types import StepRecord
from llmserve.core.validation import real, whole
from llmserve.engines.base import EngineInfo
from llmserve.lab.calibration.calibration import Calibration
from llmserve.lab.calibration.observed_steps import ObservedSteps
from llmserve.lab.calibration.valid_range import CalibrationError, StartLimits
from llmserve.lab.settings import Stage, Switch
from llmserve.observe import Telemetry
from llmserve.observe.requests import RequestLog, RequestRow
from llmserve.observe.steps import StepLog
from llmserve.serving.runtime import Runtime

MEASURED_ROWS = 32
"""Up to so many requests run at once in the load of our own, where the server may take them."""
_LOG = 1_000_000
_PACKAGES = ("llmserve", "numpy", "torch", "vllm", "transformers")
_CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
BUDGET_S = 20.0
OPEN_SHARE = 0.5
ENOUGH_STEPS, ENOUGH_PREFILLS, ENOUGH_IDLE = 1000, 100, 20
"""A tape with so many steps, steps with prefill and requests that found the engine idle."""
Tape = tuple[Sequence[StepRecord], Sequence[RequestRow]]


class CalibrationRun(Job[Tape]):
    """A load that meets every number of rows, and prompts of many lengths; or one that is given."""

    def __init__(
        self, stage: Stage, bus: EventBus, loads: Sequence[Load], rows: int | None = None
    ) -> None:
        """rows: let so many requests run at once."""
        self._switch, self._target, self._bus = Switch(stage.panel), stage.target, bus
        self._steps, self._requests = StepLog(_LOG), RequestLog(_LOG)
        self._loads, self._planned, self._rates = loads, rows is not None, list[float]()
        raised = rows is not None and rows > stage.panel.knobs.max_num_seqs
        self._setting = self._switch.read({"max_num_seqs": rows} if raised else {})
        super().__init__(len(loads) + self._planned, None)

    async def run(self) -> Tape:
        logs = (self._steps, self._requests)
        try:
            await self._switch.to(self._setting)
            await self.warm_up(self._target, self._loads[0])
            for log in logs:
                self._bus.attach(log)
            for number, load in enumerate(self._loads):
                if not self.stopped:
                    words = f"calibrating, load {number + 1} of {self.runs}"
                    report = await self.measure(words, self._target, load, None)
                    self._rates.append(report.n / max(report.duration_s, 1e-9))
            if self._planned and not self.stopped:
                await self._open_loop()
        finally:
            for log in logs:
                self._bus.detach(log)
            try:
                await self._switch.back()
            except GONE as error:
                self.lose(error)
        return self.result()

    async def _open_loop(self) -> None:
        """Arrivals that wait for no answer, at half of the rate that was reached."""
        last, rate = self._loads[-1], OPEN_SHARE * max(self._rates)
        assert isinstance(last, Workload), "planned here"
        if rate > 0:
            load = replace(last, concurrency=None, rate=rate)
            words = "calibrating, an open loop"
            await self.measure(words, self._target, load, None)

    def result(self) -> Tape:
        return self._steps.records(), self._requests.rows()


def planned(info: EngineInfo, rows: int, seconds: float) -> list[Load]:
    """Closed loops of one client and of ever more up to `rows`; prompts and replies as long as
    there is room for, up to a few hundred tokens."""
    room = max(2, info.max_model_len // 2)
    prompts, replies = (min(8, room), min(512, room)), (min(2, room), min(96, room))
    counts = [count for count in _CLIENTS if count < rows] + [rows]
    each = seconds / (len(counts) + 2)
    loads: list[Load] = [
        Workload(concurrency=1, duration_s=each, prompt_tokens=prompts, max_tokens=(1, 4))
    ]
    for count in counts:
        loads.append(
            Workload(
                concurrency=count, duration_s=each, prompt_tokens=prompts, max_tokens=replies,
                seed=count,
            )
        )  # fmt: skip
    return loads


def calibrate(
    runtime: Runtime,
    stage: Stage,
    telemetry: Telemetry,
    load: Load | None = None,
    *,
    info: EngineInfo,
    max_num_seqs: int | None = None,
    budget_s: float = BUDGET_S,
    progress: bool = True,
) -> Calibration:
    """As a cell calls it: waits, shows progress; an interrupt keeps what was measured."""
    budget_s = real("budget_s", budget_s, 1, 3600, "s")
    current, ceiling = stage.panel.knobs.max_num_seqs, info.ceilings.get("max_num_seqs", _LOG)
    rows = max(current, min(MEASURED_ROWS, ceiling))
    if max_num_seqs is not None:
        rows = whole("max_num_seqs", max_num_seqs, 1, ceiling, "requests")
    knobs, ran = stage.panel.knobs.as_dict(), ""
    tape: Tape = telemetry.steps.records(), telemetry.requests.rows()
    if load is not None or not covers(tape, current if max_num_seqs is None else rows):
        loads = planned(info, rows, budget_s) if load is None else [load]
        job = CalibrationRun(stage, telemetry.bus, loads, rows if load is None else None)
        tape = run_job(runtime, job, progress=progress)
        if job.lost is not None:
            raise CalibrationError(f"the server was lost while it was measured: {job.lost}")
        ran = str(load) if load is not None else (
            f"{len(loads)} closed loops of up to {rows} clients, and an open one: {budget_s:g} s"
        )  # fmt: skip
    return Calibration.of(
        [tape], model_id=info.model_id, engine=info.engine, versions=versions(),
        machine=machine(info), knobs=knobs, ran=ran, limits=StartLimits.of(info),
    )  # fmt: skip


def covers(tape: Tape, rows: int) -> bool:
    """Whether a tape tells enough of steps with up to so many rows."""
    seen = ObservedSteps()
    seen.extend(*tape)
    met = {work.decode_rows for work in seen.works}
    prefills = sum(1 for work in seen.works if work.prefill_rows)
    return (
        len(seen.works) >= ENOUGH_STEPS
        and prefills >= ENOUGH_PREFILLS
        and len(seen.dispatches_s) >= ENOUGH_IDLE
        and 1 in met
        and max(met) >= rows
    )


def versions() -> dict[str, str]:
    """Of the packages that have a say in what a step takes, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine(info: EngineInfo) -> str:
    """The kinds of its processors, and nothing that names it."""
    found = f"{_processor()}, {usable_cores()} of {os.cpu_count() or 1} cores"
    return found if info.device in ("cpu", "") else f"{info.device}, {found}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
