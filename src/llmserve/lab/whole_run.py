"""A simulation with everything kept: every event, every step, every row of the batch tape.

Scheduler, step planner and front are those of `simulate`, and so are all times. Events are
published as by a live session, and the same folds read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmserve.bench.load.workload import Load
from llmserve.bench.results.recorder import BenchRecorder
from llmserve.bench.results.report import Report
from llmserve.core.events import Event, EventBus, FairnessSampled, StepRecorded
from llmserve.core.knobs import Knobs
from llmserve.core.tenants import Terms
from llmserve.core.types import StepRecord
from llmserve.engines.simulator.costs import StepCost
from llmserve.engines.simulator.setup import read_setup
from llmserve.lab.columns import Columns, zero_lag
from llmserve.lab.senders import Timed
from llmserve.lab.simulation import Change, Simulation, described, figures_of
from llmserve.observe.requests import RequestLog, RequestRow, requests_frame
from llmserve.observe.steps import steps_frame, tape_frame
from llmserve.scheduling.user_policy import Choice

if TYPE_CHECKING:
    import pandas as pd

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
        return figures_of(self.report, len(self.records))


def run_virtual(
    load: Load | Iterable[Timed],
    knobs: Mapping[str, object] | None = None,
    cost: StepCost | None = None,
    *,
    policy: Choice | None = None,
    changes: Iterable[Change] = (),
    terms: Mapping[str, Terms] | None = None,
    fold: Callable[[Event], None] | None = None,
    **engine: Any,
) -> Run:
    """As `simulate`, and keeps everything: kilobytes a request, and a third of its speed.

    fold: called with every event.
    """
    bus, log = EventBus(), RequestLog(_ALL)
    recorder = BenchRecorder(everything=True)
    records: list[StepRecord] = []
    gaps: list[FairnessSampled] = []

    def keep(event: Event) -> None:
        if isinstance(event, StepRecorded):  # the two events that this fold is about
            records.append(event.record)
        elif isinstance(event, FairnessSampled):
            gaps.append(event)

    for each in (log, keep, recorder):
        bus.attach(each)
    if fold is not None:
        bus.attach(fold)
    simulation = Simulation(
        read_setup(cost, engine), knobs, Columns(), policy=policy, changes=changes, terms=terms,
        bus=bus,
    )  # fmt: skip
    sender = simulation.sender_of(load, expect=recorder.expect, refuse=recorder.refuse)
    simulation.run(sender)
    name, same_prompts = described(load)
    report = recorder.report(name, lag=zero_lag(sender.lags), same_prompts=same_prompts)
    return Run(simulation.front.board.current, report, log.rows(), records, gaps)
