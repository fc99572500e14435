"""`Prediction`: what a load would meet under other knobs, every figure beside its error.

It refuses to recommend where that error is beyond its target or unknown, or where the run leaves
what was calibrated.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmserve.bench.load.traces import read_load
from llmserve.bench.load.workload import Load
from llmserve.bench.results.report import Report
from llmserve.bench.results.result import Result
from llmserve.core.validation import out_of
from llmserve.lab.tables import html_table, text_table
from llmserve.lab.what_if.errors import (
    FIGURES,
    HeldOut,
    HeldOutErrors,
    figures_of,
    shown,
    target_of,
)
from llmserve.plots.figures import lines
from llmserve.scheduling.user_policy import Choice

if TYPE_CHECKING:
    from llmserve.lab.calibration.calibration import Calibration
    from llmserve.lab.simulation import SimulationResult
    from llmserve.plots.figures import Figure

UNKNOWN = "error unknown: run model = session.validate(model)"
_BEYOND = 1.25
"""KV of a run is summed at its requests' full lengths, which is above what steps read."""
_NEAR_CAPACITY = 0.97


class NotRecommended(ValueError):
    """The prediction may not be relied on; the message says why, and the cure."""


@dataclass(frozen=True)
class Prediction:
    """Show it as a cell's last line. `figures` are seconds and counts; `report` has all others."""

    load: str
    knobs: Mapping[str, object]
    policy: str
    report: Report
    errors: HeldOutErrors | None
    loop: str
    doubts: tuple[str, ...]
    """Why it is not to be recommended; empty where it may be."""

    @property
    def figures(self) -> dict[str, float | None]:
        return figures_of(self.report)

    @property
    def trusted(self) -> bool:
        return not self.doubts

    def error(self, figure: str) -> str:
        """In words; a sentence that says how to learn it, where it is unknown."""
        found = None
        if self.errors is not None:
            found = self.errors.of(figure, self.loop) or self.errors.of(figure)
        return UNKNOWN if found is None else str(found)

    def recommend(self) -> Mapping[str, object]:
        """The knobs, to be set. NotRecommended where the prediction may not be relied on."""
        if self.doubts:
            raise NotRecommended(f"no recommendation: {'; '.join(self.doubts)}")
        return self.knobs

    def against(self, live: Result | Report) -> HeldOutErrors:
        """Predicted beside what was then measured."""
        runs = live.runs if isinstance(live, Result) else (live,)
        seen = HeldOut(
            name="predicted, then run", load=self.load,
            loop="open" if self.loop == "open" else "closed", predicted=self.figures,
            live=tuple(figures_of(run) for run in runs),
        )  # fmt: skip
        return HeldOutErrors(held_out=(seen,))

    def plot(self) -> Figure:
        """The share of requests by their time to first token, and of gaps by their length."""
        drawn = {
            name.upper(): ([value * 1e3 for value in found], [float(i) for i in range(101)])
            for name in ("ttft", "itl")
            if (found := self.report.quantiles.get(name))
        }
        return lines("Predicted latencies", drawn, x="ms", y="% at most")

    def words(self) -> list[str]:
        knobs = ", ".join(f"{name}={value}" for name, value in self.knobs.items()) or "as it is"
        found = [f"predicted with {knobs}, policy {self.policy}", self.load]
        if not self.doubts:
            return [*found, "error within its target on held-out traffic"]
        return [*found, *(f"NOT RECOMMENDED: {doubt}" for doubt in self.doubts)]

    def rows(self) -> list[tuple[str, str, str]]:
        found = self.figures
        return [
            (name, shown(name, found[name]), self.error(name))
            for name in FIGURES
            if found[name] is not None
        ]

    def __str__(self) -> str:
        return "\n".join([*self.words(), "", *text_table([_HEAD, *self.rows()])])

    def _repr_pretty_(self, page: Any, cycle: bool) -> None:
        page.text(str(self))

    def _repr_html_(self) -> str:
        words = "<br>".join(html.escape(line) for line in self.words())
        return f"<p>{words}</p>{html_table([_HEAD, *self.rows()])}{self.plot().svg}"


_HEAD = ("figure", "predicted", "error on held-out traffic")


def what_if(
    model: Calibration,
    load: Load | str | os.PathLike[str],
    knobs: Mapping[str, object] | None = None,
    *,
    policy: Choice | str | None = None,
    replicas: int = 1,
    seed: int = 0,
    **options: Any,
) -> Prediction:
    """As `Calibration.what_if`."""
    if replicas != 1:
        raise out_of("replicas", "1, for a set of engines is not simulated yet", replicas)
    if isinstance(load, str | os.PathLike):
        load = read_load(os.fspath(load))
    asked = dict(knobs or {})
    function: Choice | None = None
    if isinstance(policy, str):
        asked["policy"] = policy
    elif policy is not None:
        function = policy
    found = model.simulate(load, asked, policy=function, seed=seed, progress=False, **options)
    loop = "open" if load.clients is None else "closed"
    return Prediction(
        load=str(load), knobs=asked, policy=found.knobs.policy, report=found.report,
        errors=model.errors, loop=loop, doubts=tuple(_doubts(model, found, loop)),
    )  # fmt: skip


def _doubts(model: Calibration, found: SimulationResult, loop: str) -> list[str]:
    doubts, report, errors = [], found.report, model.errors
    if errors is None or not errors.held_out:
        doubts.append(UNKNOWN)
    else:
        doubts += [f"{failure} ({_cure(errors, loop)})" for failure in errors.failures(loop)]
        capacity = errors.capacity_tokens_per_s
        rate = report.generated_tokens_per_s
        same = not turned(found, model)
        if loop == "open" and same and capacity and rate > _NEAR_CAPACITY * capacity:
            doubts.append(
                f"the load is above what was held out: {rate:,.0f} of {capacity:,.0f} tokens/s; "
                "lower its rate"
            )
    most = peak_kv(found)
    if most > _BEYOND * model.valid.kv_tokens:
        doubts.append(
            f"the load leaves the calibrated range: {most:,} tokens of KV at once, and "
            f"{model.valid.kv_tokens:,} were measured; calibrate with this load"
        )
    if report.n < report.sent:
        doubts.append(f"{report.sent - report.n} of {report.sent} requests would not be served")
    return doubts


def _cure(errors: HeldOutErrors, loop: str) -> str:
    drift = errors.drift(loop)
    if drift is not None and abs(drift) > target_of("generated_tokens_per_s"):
        change = "slower" if drift < 0 else "faster"
        return f"its steps ran {change} than when they were calibrated: calibrate and validate anew"
    return "calibrate anew with a load like this one, then validate"


def turned(found: SimulationResult, model: Calibration) -> bool:
    """Whether the run was under other knobs than the calibrated ones, whose capacity differs."""
    now = found.knobs.as_dict()
    return any(now.get(name) != value for name, value in model.knobs.items())


def peak_kv(found: SimulationResult) -> int:
    """The most tokens that requests in the engine held together, each at its full length."""
    import numpy as np

    columns = found.columns
    begun = ~np.isnan(columns["dispatched"])
    tokens = (columns["prompt_tokens"] + columns["completion_tokens"])[begun].astype(np.int64)
    times = np.concatenate((columns["ended"][begun], columns["dispatched"][begun]))
    changes = np.concatenate((-tokens, tokens))
    order = np.argsort(times, kind="stable")
    return int(np.max(np.cumsum(changes[order]), initial=0))
