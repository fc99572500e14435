"""Calibrate a live server: from its tape, and from a short load where that tells too little."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from llmserve.bench.load.workload import Load, Workload
from llmserve.bench.run.cell import run_job
from llmserve.bench.run.job import GONE, Job
from llmserve.bench.run.process import usable_cores
from llmserve.core.events import EventBus
from llmserve.core.types import StepRecord
from llmserve.core.validation import whole
from llmserve.engines.base import EngineInfo
from llmserve.lab.calibration.calibration import Calibration
from llmserve.lab.calibration.valid_range import CalibrationError, StartLimits
from llmserve.lab.settings import Stage, Switch
from llmserve.observe.requests import RequestLog, RequestRow
from llmserve.observe.steps import StepLog
from llmserve.serving.runtime import Runtime

MEASURED_ROWS = 32
"""Up to so many requests run at once in the load of our own, where the server may take them."""
_LOG = 1_000_000
_PACKAGES = ("llmserve", "numpy", "torch", "vllm", "transformers")
_SHARES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
Tape = tuple[Sequence[StepRecord], Iterable[RequestRow]]


class CalibrationRun(Job[list[Tape]]):
    """A load that meets every number of rows, and prompts of many lengths."""

    def __init__(
        self, stage: Stage, bus: EventBus, info: EngineInfo, *, rows: int, seconds: float
    ) -> None:
        self._switch, self._target, self._bus = Switch(stage.panel), stage.target, bus
        self._steps, self._requests = StepLog(_LOG), RequestLog(_LOG)
        self.loads = planned(info, rows, seconds)
        now = stage.panel.knobs
        changes: dict[str, object] = {}
        if rows > now.max_num_seqs:
            changes["max_num_seqs"] = rows
        self._setting = self._switch.read(changes)
        super().__init__(len(self.loads), None)

    async def run(self) -> list[Tape]:
        logs = (self._steps, self._requests)
        try:
            await self._switch.to(self._setting)
            await self.warm_up(self._target, self.loads[0])
            for log in logs:
                self._bus.attach(log)
            for number, load in enumerate(self.loads):
                if not self.stopped:
                    words = f"calibrating, load {number + 1} of {len(self.loads)}"
                    await self.measure(words, self._target, load, None)
        finally:
            for log in logs:
                self._bus.detach(log)
            try:
                await self._switch.back()
            except GONE as error:
                self.lose(error)
        return self.result()

    def result(self) -> list[Tape]:
        return [(self._steps.records(), self._requests.rows())]


def planned(info: EngineInfo, rows: int, seconds: float) -> list[Workload]:
    """Closed loops of ever more clients up to `rows`, whose prompts and replies are as long as they
    may be up to a few hundred tokens."""
    room = max(2, info.max_model_len // 2)
    prompts, replies = (min(8, room), min(512, room)), (min(2, room), min(96, room))
    clients = [count for count in _SHARES if count < rows] + [rows]
    each = seconds / (len(clients) + 1)
    short = Workload(
        concurrency=1, duration_s=each, prompt_tokens=prompts, max_tokens=(1, min(4, room))
    )
    return [
        short,
        *(
            Workload(
                concurrency=count, duration_s=each, prompt_tokens=prompts, max_tokens=replies,
                seed=count,
            )
            for count in clients
        ),
    ]  # fmt: skip


def calibrate(
    runtime: Runtime,
    stage: Stage,
    bus: EventBus,
    info: EngineInfo,
    load: Load | None = None,
    *,
    tape: Tape | None = None,
    max_num_seqs: int | None = None,
    budget_s: float = 20.0,
    progress: bool = True,
) -> Calibration:
    """As a cell calls it."""
    ceiling = info.ceilings.get("max_num_seqs", MEASURED_ROWS)
    rows = max(stage.panel.knobs.max_num_seqs, min(MEASURED_ROWS, ceiling))
    if max_num_seqs is not None:
        rows = whole("max_num_seqs", max_num_seqs, 1, ceiling, "requests")
    knobs = stage.panel.knobs.as_dict()
    ran, tapes = "", [] if tape is None else [tape]
    if tape is None or not covers(tape[0], min(rows, stage.panel.knobs.max_num_seqs)):
        job = CalibrationRun(stage, bus, info, rows=rows, seconds=budget_s)
        tapes = run_job(runtime, job, progress=progress)
        if job.lost is not None:
            raise CalibrationError(f"the server was lost while it was measured: {job.lost}")
        ran = f"{len(job.loads)} loads of up to {rows} clients in {budget_s:g} s"
    return Calibration.of(
        tapes, model_id=info.model_id, engine=info.engine, versions=versions(),
        machine=machine(info), knobs=knobs, ran=ran, limits=StartLimits.of(info),
    )  # fmt: skip


def covers(records: Sequence[StepRecord], rows: int) -> bool:
    return False


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


def facts_of(info: EngineInfo) -> dict[str, Any]:
    return {"model_id": info.model_id, "engine": info.engine}
