"""Simulate: a load through admission, scheduler and step planner, on virtual time and in no time.

Scheduler, policies, admission and step planner are those of a live session; only what a step costs
is a model. There is no event loop and no task: steps that are alike are taken in one go, and of a
request only its figures stay. Times, ends and refusals are those of `run_virtual`, to the last bit.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from llmserve.bench.load.workload import Load
from llmserve.bench.results.report import Report
from llmserve.bench.results.slo import Slo, parse_slo
from llmserve.core.agenda import Agenda
from llmserve.core.events import EventBus
from llmserve.core.knobs import KnobBoard, KnobError, Knobs
from llmserve.core.progress import SHOWN_AFTER_S, Waiting
from llmserve.core.tenants import Terms
from llmserve.core.validation import Bounds
from llmserve.engines.simulator.costs import StepCost
from llmserve.engines.simulator.setup import SimulatorSetup, read_setup
from llmserve.lab.columns import COUNTS, TIMES, Columns
from llmserve.lab.front import Ends, SimulatedFront
from llmserve.lab.senders import Expect, LoadSender, RequestSender, Timed, reads_replies
from llmserve.observe.requests import RequestRow
from llmserve.scheduling.user_policy import Choice, try_out
from llmserve.serving.publisher import Publisher, publish_step

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

Change = tuple[float, Mapping[str, object]]
"""Knobs that are turned at a time, in seconds from the start."""
_AT = Bounds("the time of a change of knobs", 0, math.inf, "s", kind="real")


class Simulation:
    """A front with its engine on an agenda, before it runs. Everything that is wrong is raised
    here."""

    def __init__(
        self,
        setup: SimulatorSetup,
        knobs: Mapping[str, object] | None,
        ends: Ends,
        *,
        policy: Choice | None = None,
        changes: Iterable[Change] = (),
        terms: Mapping[str, Terms] | None = None,
        keep_times: bool = False,
        bus: EventBus | None = None,
        read: bool = True,
    ) -> None:
        """bus: all events are published on it, where there is one. Not `read` where words do not
        matter."""
        if policy is not None:
            try_out(policy)
        began = _read(knobs, policy)
        turns = [(_AT.read(when), values, _read(values, policy)) for when, values in changes]
        self.agenda = agenda = Agenda()
        self.front = SimulatedFront(
            agenda, setup, KnobBoard(began), ends, terms=terms, keep_times=keep_times, read=read,
            publisher=None if bus is None else Publisher(bus, agenda),
            sink=None if bus is None else partial(publish_step, bus),
        )  # fmt: skip
        self._read = read
        if policy is not None:
            self.front.use_policy(policy)
        for when, values, turned in turns:
            agenda.at(when, agenda.soon, self.front.set_knobs, values.keys(), turned, "simulate")

    def sender_of(
        self, load: Load | Iterable[Timed], *, expect: Expect,
        refuse: Callable[[float, str], object],
    ) -> LoadSender | RequestSender:  # fmt: skip
        if isinstance(load, Iterable):
            return RequestSender(self.agenda, self.front, load)
        return LoadSender(
            self.agenda, self.front, load, expect=expect, refuse=refuse, spelt=self._read
        )

    def run(self, sender: LoadSender | RequestSender) -> None:
        """Run to the end. PolicyError where a function of the user's own fails on the way."""
        sender.start()
        self.agenda.run_to_end()
        if self.front.policy_error is not None:
            raise self.front.policy_error


def _read(values: Mapping[str, object] | None, policy: Choice | None) -> Knobs:
    """All knobs with these in force; KnobError where one is wrong."""
    read = Knobs().changed(values or {})
    if read.policy == "custom" and policy is None:
        raise KnobError("policy", "policy=custom needs your function: give policy=function")
    return read


@dataclass(frozen=True)
class SimulationResult:
    """What was simulated: a summary as a bench has it, and a row per request in columns."""

    knobs: Knobs
    """As they were in the end."""
    report: Report
    steps: int
    columns: Mapping[str, NDArray[Any]]
    """In the order in which requests were sent; `tenant` and `reason` are places in the lists
    below. Times are virtual seconds from 0, NaN where a request never came so far."""
    tenants: Sequence[str]
    reasons: Sequence[str]
    token_times: Mapping[int, array[float]]
    """By the number of a request, when each of its tokens came; empty unless asked for."""

    @property
    def makespan_s(self) -> float:
        """First scheduled arrival to the last end."""
        return self.report.duration_s

    def requests(self) -> pd.DataFrame:
        """One row per request, by the number in which it was sent. Seconds."""
        import numpy as np
        import pandas as pd

        kept = dict(self.columns)
        arrival, dispatched, first, ended = (kept.pop(name) for name in TIMES)
        number = kept.pop("number")
        kept["tenant"] = np.array(self.tenants, object)[kept["tenant"]]
        kept["finish_reason"] = np.array(self.reasons, object)[kept.pop("reason")]
        times = {
            "arrival": arrival, "queue_s": dispatched - arrival, "prefill_s": first - dispatched,
            "ttft_s": first - arrival, "decode_s": ended - first, "e2e_s": ended - arrival,
        }  # fmt: skip
        return pd.DataFrame(kept | times, index=pd.Index(number, name="request"))

    def figures(self) -> dict[str, float]:
        """The run in one line; times in milliseconds, NaN where nothing was measured."""
        return figures_of(self.report, self.steps)

    def __str__(self) -> str:
        return str(self.report)

    def _repr_pretty_(self, page: Any, cycle: bool) -> None:
        page.text(str(self))


def simulate(
    load: Load | Iterable[Timed],
    knobs: Mapping[str, object] | None = None,
    cost: StepCost | None = None,
    *,
    policy: Choice | None = None,
    changes: Iterable[Change] = (),
    terms: Mapping[str, Terms] | None = None,
    slo: Slo | str | None = None,
    token_times: bool = False,
    each: Callable[[RequestRow], object] | None = None,
    progress: bool = True,
    **engine: Any,
) -> SimulationResult:
    """Simulate to the end. `engine` takes the simulator's other options: jitter, seed, KV and
    ceilings.

    load: a Workload or a Replay; or requests in order of their arrival, each alone or with the
    time at which its client leaves. policy: a function of your own, as `Session.policy` takes it.
    changes: knobs that are turned meanwhile. each: called with each request as it ends.

    Raises KnobError for a bad knob, PolicyError for a bad function, ValueError for another wrong
    value, RuntimeError where the run can make no progress.
    """
    waiting = Waiting(
        lambda: f"simulating, {columns.ended_count:,} requests so far", after_s=SHOWN_AFTER_S
    )
    columns = Columns(parse_slo(slo), each=each, tick=waiting if progress else None)
    setup = read_setup(cost, engine)
    simulation = Simulation(
        setup, knobs, columns, policy=policy, changes=changes, terms=terms,
        keep_times=token_times, read=reads_replies(load, setup.block_size),
    )  # fmt: skip
    sender = simulation.sender_of(load, expect=columns.expect, refuse=columns.refused)
    outcome = "failed"
    try:
        simulation.run(sender)
        outcome = "done"
    finally:
        waiting.end(outcome)
    return _result(simulation.front, columns, setup, load, sender)


def sweep(
    load: Load,
    grid: Mapping[str, Sequence[object]],
    cost: StepCost | None = None,
    **engine: Any,
) -> pd.DataFrame:
    """One run per combination of the grid's knob values: their values, and the run's `figures`."""
    import pandas as pd

    lines = []
    for values in itertools.product(*grid.values()):
        knobs = dict(zip(grid, values, strict=True))
        lines.append(knobs | simulate(load, knobs, cost, **engine).figures())
    return pd.DataFrame(lines)


def figures_of(report: Report, steps: int) -> dict[str, float]:
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
        "steps": steps,
        "seq_fill": math.nan if report.seq_fill is None else report.seq_fill,
    }


def described(load: Load | Iterable[Timed]) -> tuple[str, bool]:
    """What a report calls the load, and whether its prompts are the same in every run."""
    return ("requests as given", True) if isinstance(load, Iterable) else (
        str(load), load.same_prompts
    )  # fmt: skip


def _result(
    front: SimulatedFront, columns: Columns, setup: SimulatorSetup,
    load: Load | Iterable[Timed], sender: LoadSender | RequestSender,
) -> SimulationResult:  # fmt: skip
    arrays = columns.arrays()
    name, same_prompts = described(load)
    report = columns.report(
        name,
        arrays,
        kv_blocks=setup.kv_blocks,
        expected=not isinstance(load, Iterable),
        same_prompts=same_prompts,
        lags=sender.lags,
    )
    return SimulationResult(
        knobs=front.board.current,
        report=report,
        steps=front.engine.delivered_steps,
        columns={name: arrays[name] for name in (*TIMES, *COUNTS)},
        tenants=columns.names("tenant"),
        reasons=columns.names("reason"),
        token_times=columns.token_times,
    )
