"""What if: a workload through the whole path on virtual time, with the simulator as the engine.

The service, its scheduler and the step planner are those of a live session; only what a step
costs is a model. An hour of traffic takes as long as its planning, and gives the same figures
every time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llmserve.bench.load.workload import Load, Workload
from llmserve.bench.results.report import Report
from llmserve.bench.run.driver import Bench, ServiceTarget
from llmserve.core.clock import VirtualClock
from llmserve.core.events import Event, EventBus, FairnessSampled, StepRecorded
from llmserve.core.knobs import KnobBoard, Knobs
from llmserve.core.types import StepRecord
from llmserve.engines.simulator.costs import StepCost
from llmserve.engines.simulator.engine import SimulatorEngine
from llmserve.observe.requests import RequestLog, RequestRow, requests_frame
from llmserve.observe.steps import steps_frame, tape_frame
from llmserve.scheduling.user_policy import Choice, try_out
from llmserve.serving.publisher import publish_step
from llmserve.serving.service import Service

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "StepCost", "Workload", "run_virtual", "sweep"]

_ALL = 10_000_000
"""Rows that the log of one run may keep: all, that is."""


@dataclass(frozen=True)
class Run:
    """What happened, whole: every request and every step. Times are virtual seconds from 0."""

    knobs: Knobs
    report: Report
    rows: list[RequestRow]
    records: list[StepRecord]
    gaps: list[FairnessSampled]
    """Under fair_share, the difference of service between tenants as it went."""

    @property
    def makespan_s(self) -> float:
        """First scheduled arrival to the last end."""
        return self.report.duration_s

    def requests(self) -> pd.DataFrame:
        """One row per request, indexed by its id."""
        return requests_frame(self.rows)

    def steps(self) -> pd.DataFrame:
        """One row per engine step."""
        return steps_frame(self.records)

    def tape(self) -> pd.DataFrame:
        """One row per request per step: who was in the batch, and with how many tokens."""
        return tape_frame(self.records)

    def figures(self) -> dict[str, float]:
        """The run in one line; times in milliseconds, NaN where nothing was measured."""
        report = self.report
        summaries = {"ttft": report.ttft, "itl": report.itl, "e2e": report.e2e}
        latencies = {
            f"{name}_{part}_ms": math.nan if (s := getattr(summary, part)) is None else s * 1e3
            for name, summary in summaries.items()
            for part in ("mean", "p95")
        }
        return {
            "makespan_s": report.duration_s,
            "tokens_per_s": report.generated_tokens_per_s,
            **latencies,
            "served": report.n,
            "refused": report.sent - report.n,
            "steps": len(self.records),
            "seq_fill": math.nan if report.seq_fill is None else report.seq_fill,
        }


def run_virtual(
    workload: Load,
    knobs: Mapping[str, object] | None = None,
    cost: StepCost | None = None,
    *,
    policy: Choice | None = None,
    **engine: Any,
) -> Run:
    """Run to the end. `engine` takes the simulator's other options: jitter, seed, KV and ceilings.

    policy: a function of your own, as `Session.policy` takes it. Raises KnobError for a bad knob,
    PolicyError for a bad function, RuntimeError where the run can make no progress.
    """
    if policy is not None:
        try_out(policy)
    clock = VirtualClock()
    options = asdict(cost or StepCost()) | engine
    return clock.run(_run(clock, workload, Knobs().changed(knobs or {}), policy, options))


def sweep(
    workload: Load,
    grid: Mapping[str, Sequence[object]],
    cost: StepCost | None = None,
    **engine: Any,
) -> pd.DataFrame:
    """One run per combination of the grid's knob values: their values, and `Run.figures`."""
    import pandas as pd

    lines = []
    for values in itertools.product(*grid.values()):
        knobs = dict(zip(grid, values, strict=True))
        lines.append(knobs | run_virtual(workload, knobs, cost, **engine).figures())
    return pd.DataFrame(lines)


async def _run(
    clock: VirtualClock,
    workload: Load,
    knobs: Knobs,
    policy: Choice | None,
    options: Mapping[str, Any],
) -> Run:
    bus, log = EventBus(), RequestLog(_ALL)
    records: list[StepRecord] = []
    gaps: list[FairnessSampled] = []

    def keep(event: Event) -> None:
        if isinstance(event, StepRecorded):  # the two events that this fold is about
            records.append(event.record)
        elif isinstance(event, FairnessSampled):
            gaps.append(event)

    bus.attach(log)
    bus.attach(keep)
    engine = SimulatorEngine(
        sink=lambda record: publish_step(bus, record), clock=clock, **options
    )
    service = Service(engine, KnobBoard(knobs), bus, clock)
    await service.start()
    if policy is not None:
        await service.use_policy(policy)
    try:
        report = await Bench(ServiceTarget(service, bus), workload).run()
    finally:
        await service.stop()
    if service.policy_error is not None:
        raise service.policy_error
    return Run(service.board.current, report, log.rows(), records, gaps)
