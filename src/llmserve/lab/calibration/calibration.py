"""`Calibration`: what an engine's steps take and what the front adds, as they were measured.

It is plain data: saved as JSON and read again with every number checked.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from llmserve.bench.load.workload import Load
from llmserve.core.knobs import Knobs
from llmserve.core.types import StepRecord
from llmserve.core.validation import real
from llmserve.engines.simulator.step_model import Spread, StepTimeModel
from llmserve.lab.calibration.fit import fit, spread_of
from llmserve.lab.calibration.fit_report import FitReport, fit_report
from llmserve.lab.calibration.observed_steps import ObservedSteps
from llmserve.lab.calibration.valid_range import (
    CalibrationError,
    StartLimits,
    ValidRange,
    check_knobs,
)
from llmserve.lab.senders import Timed
from llmserve.lab.simulation import Change, SimulationResult, simulate
from llmserve.lab.what_if.errors import HeldOutErrors
from llmserve.observe.requests import RequestLog, RequestRow
from llmserve.observe.steps import StepLog
from llmserve.observe.trace import read_trace, replay
from llmserve.scheduling.user_policy import Choice

if TYPE_CHECKING:
    from llmserve.lab.what_if.prediction import Prediction
    from llmserve.plots.figures import Figure

VERSION = 1
FEWEST_STEPS = 50
_MOST_BYTES = 16 * 2**20
_LONGEST_S = 3600.0
_ALL = 10_000_000


class FrontCosts(msgspec.Struct, frozen=True, kw_only=True):
    """What the front and the link to the engine add, in seconds: medians, and the spreads of
    single requests and steps about them."""

    arrival_s: float = 0.0
    """From a request's arrival to its dispatch, where nothing holds it back."""
    dispatch_s: float = 0.0
    """From its dispatch until the engine can plan it."""
    delivery_s: float = 0.0
    """From a step's end until the clients have its tokens."""
    gap_s: float = 0.0
    """From a step's end to the next one's start; it is part of the steps' times already."""
    dispatch: Spread = Spread()
    """Of arrival and dispatch together."""
    delivery: Spread = Spread()

    @classmethod
    def of(cls, seen: ObservedSteps) -> FrontCosts:
        arrival, dispatch = _median(seen.arrivals_s), _median(seen.dispatches_s)
        delivery = _median(seen.deliveries_s)
        return cls(
            arrival_s=arrival, dispatch_s=dispatch, delivery_s=delivery,
            gap_s=_median(seen.gaps_s),
            dispatch=spread_of([wait + dispatch for wait in seen.arrivals_s], arrival + dispatch),
            delivery=spread_of(seen.deliveries_s, delivery),
        )  # fmt: skip

    def check(self) -> None:
        for name in ("arrival_s", "dispatch_s", "delivery_s", "gap_s"):
            real(name, getattr(self, name), 0, _LONGEST_S, "s", exact=True)
        self.dispatch.check("dispatch")
        self.delivery.check("delivery")


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Show it as a cell's last line: its terms, its tails, and measured beside predicted times.

    `simulate(load, knobs)` runs a load with these times, `save` and `load` keep them as JSON.
    """

    version: int = VERSION
    model_id: str
    engine: str
    versions: dict[str, str] = {}
    machine: str = ""
    knobs: dict[str, Any] = {}
    """As they were while it was measured."""
    ran: str = ""
    """What load was run for it, in words."""
    limits: StartLimits
    steps: StepTimeModel
    front: FrontCosts
    valid: ValidRange
    report: FitReport = FitReport()
    errors: HeldOutErrors | None = None
    """Of its predictions on held-out traffic; None until `Session.validate` measured them."""

    @classmethod
    def of(
        cls, tapes: Iterable[tuple[Sequence[StepRecord], Iterable[RequestRow]]], **facts: Any
    ) -> Self:
        """Fit to tapes, each with the log of its requests. CalibrationError where they tell too
        little."""
        seen = ObservedSteps()
        for records, rows in tapes:
            seen.extend(records, rows)
        if seen.drafts:
            raise CalibrationError(
                "speculative decoding is not modelled: a step's tokens then depend on how many of "
                f"the {seen.drafts:,} drafted ones stood; serve without it to calibrate",
                "speculative_config",
            )
        if len(seen.works) < FEWEST_STEPS:
            raise CalibrationError(
                f"the tape has {len(seen.works)} steps that can be told, and {FEWEST_STEPS} are "
                "needed: run a load first"
            )
        steps = fit(seen.works, seen.seconds, seen.indices)
        most = [max(each) for each in zip(*seen.works, strict=True)]
        valid = ValidRange(
            steps=len(seen.works), decode_rows=most[0], prefill_rows=most[1],
            prefill_tokens=most[2], kv_tokens=most[3],
        )  # fmt: skip
        report = fit_report(steps, seen.works, seen.seconds)
        return cls(steps=steps, front=FrontCosts.of(seen), valid=valid, report=report, **facts)

    @classmethod
    def from_trace(cls, path: str | os.PathLike[str]) -> Self:
        """Fit to what `Session.trace` wrote; the engine's ceilings are not in it, so no knob is
        refused for them. CalibrationError where it tells too little, TraceError where it is none.
        """
        steps, requests, trace = StepLog(_ALL), RequestLog(_ALL), read_trace(os.fspath(path))
        replay(trace, steps, requests)
        tape = steps.records()
        capacity = tape[-1].kv_capacity_tokens if tape else 1
        return cls.of(
            [(tape, requests.rows())], model_id=trace.header.model, engine=trace.header.engine,
            knobs=dict(trace.header.knobs), limits=StartLimits.untold(capacity),
        )  # fmt: skip

    def simulate(
        self,
        load: Load | Iterable[Timed],
        knobs: Mapping[str, object] | None = None,
        *,
        policy: Choice | None = None,
        seed: int = 0,
        changes: Iterable[Change] = (),
        **options: Any,
    ) -> SimulationResult:
        """As `llmserve.lab.simulate`, with the measured times: the knobs of the calibrated session
        with these changed. seed: of the tails. options: terms, slo, token_times, each, progress.

        CalibrationError for a knob that is not modelled or leaves the measured range.
        """
        changes = list(changes)
        for asked in (knobs or {}, *(values for _, values in changes)):
            self.check(asked)
        values = {**self.knobs, **(knobs or {})}
        if values.get("policy") == "custom" and policy is None:
            values["policy"] = Knobs().policy
        return simulate(
            load, values, policy=policy, changes=changes, seed=seed, **self.engine_options(),
            **options,
        )  # fmt: skip

    def engine_options(self) -> dict[str, Any]:
        """The simulator's options by which it takes these times."""
        return {
            **self.limits.options(),
            "times": self.steps,
            "model": self.model_id,
            "dispatch_ms": (self.front.arrival_s + self.front.dispatch_s) * 1e3,
            "dispatch": self.front.dispatch,
            "delivery_ms": self.front.delivery_s * 1e3,
            "delivery": self.front.delivery,
        }

    def what_if(
        self, load: Load | str | os.PathLike[str], knobs: Mapping[str, object] | None = None,
        *, policy: Choice | str | None = None, replicas: int = 1, **options: Any,
    ) -> Prediction:  # fmt: skip
        """What a load, or a recorded trace's file, would meet under these knobs; every figure
        stands beside its error on held-out traffic. options: seed, slo, changes, terms.

        CalibrationError for a knob that is not modelled, ValueError for replicas other than 1.
        """
        from llmserve.lab.what_if.prediction import what_if

        return what_if(self, load, knobs, policy=policy, replicas=replicas, **options)

    def check(self, knobs: Mapping[str, object]) -> None:
        """CalibrationError that names a knob which is not modelled, or which leaves the measured
        range."""
        check_knobs(knobs, self.knobs, self.valid, self.limits)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON."""
        text = msgspec.json.format(msgspec.json.encode(self), indent=1)
        Path(path).write_bytes(text + b"\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote. CalibrationError where the file is none, or a number in it cannot
        be; OSError as usual."""
        file = Path(path)
        if (size := file.stat().st_size) > _MOST_BYTES:
            raise CalibrationError(f"{file} holds no calibration: it has {size:,} bytes")
        try:
            found = msgspec.json.decode(file.read_bytes(), type=cls)
            found.validate()
        except (msgspec.MsgspecError, ValueError) as error:
            raise CalibrationError(f"{file} holds no calibration: {error}") from None
        return found

    def validate(self) -> None:
        """ValueError for a number that is out of its range."""
        if self.version != VERSION:
            raise ValueError(f"it is of version {self.version}, and this package reads {VERSION}")
        for part in (self.steps, self.front, self.valid, self.limits):
            part.check()
        self.check({})

    def table(self) -> list[tuple[str, str]]:
        """Each cost in words, and what it is."""
        rows = [(str(term), _cost(term.seconds)) for term in self.steps.terms]
        rows += [
            ("arrival to dispatch", _cost(self.front.arrival_s)),
            ("dispatch to the engine", _cost(self.front.dispatch_s)),
            ("a step's end to delivery", _cost(self.front.delivery_s)),
            ("between steps, in the above", _cost(self.front.gap_s)),
        ]
        return rows

    def plot(self) -> Figure:
        """Predicted and measured step times, with quantiles of what was measured."""
        return self.report.figure()

    def words(self) -> list[str]:
        """What it is of and valid for, and how well it fits."""
        found = [
            f"{self.model_id} on {self.engine}, {self.machine}",
            f"valid for {self.valid}",
            *self.report.words(),
        ]
        return [*found, f"ran for it: {self.ran}"] if self.ran else found

    def __repr__(self) -> str:
        wide = max(len(name) for name, _ in self.table())
        lines = [f"{name:<{wide}}  {cost:>10}" for name, cost in self.table()]
        return "\n".join([*self.words(), "", *lines])

    def _repr_pretty_(self, page: Any, cycle: bool) -> None:
        page.text(repr(self))

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(name)}</td><td>{html.escape(cost)}</td>"
            "</tr>"
            for name, cost in self.table()
        )
        words = "<br>".join(html.escape(line) for line in self.words())
        return f"<p>{words}</p><table><tbody>{rows}</tbody></table>{self.plot().svg}"


def _cost(seconds: float) -> str:
    """A term of a step may be far below a millisecond."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    if not ordered:
        return 0.0
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[-1 - middle]) / 2
