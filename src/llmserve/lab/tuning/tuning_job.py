"""`Tuning`: the live half. It proposes by prediction, races on identical arrivals, confirms."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llmserve.bench.load.workload import Load
from llmserve.bench.results.report import Report
from llmserve.bench.run.job import GONE, Job
from llmserve.core.quantities import number
from llmserve.lab.settings import NeedsRestart, Stage, Switch
from llmserve.lab.tuning.limits import Limits
from llmserve.lab.tuning.prediction import Predict
from llmserve.lab.tuning.race import (
    FEWEST_ROUNDS,
    FIRST_LOOK,
    MOST_PAIRS,
    MOST_ROUNDS,
    Race,
    confirmed,
)
from llmserve.lab.tuning.result import Tried, TuneResult, in_words
from llmserve.lab.tuning.shape import cliffs, proposals

MOST_TRIED = 5
"""Settings that race where there is a prediction, the present one among them."""
_HOPELESS = 1.5
"""A trial is cut where it takes so many times as long as one that equals the round's best may."""
_NEAR, _TRUSTED = 0.8, 0.25
"""What is predicted below this share of the best is not tried, where the prediction for the present
setting was off by no more than that (of half of the best, where its own figure is smaller)."""
_SEED = 0
Cut = Literal["no", "hopeless", "overlong", "budget"]
NOTHING_LEFT = "nothing left that could win"
BUDGET = "budget"


class Tuning(Job[TuneResult]):
    """A race of settings within a budget of seconds; the knobs go back at its end."""

    def __init__(
        self,
        stage: Stage,
        grid: Sequence[Mapping[str, Any]],
        load: Load,
        *,
        figure: str,
        limits: Limits,
        budget_s: float,
        spent_s: float = 0.0,
        most: int = MOST_TRIED,
        warmup: bool = True,
        apply: bool = False,
        remarks: Sequence[str] = (),
    ) -> None:
        """KnobError for a setting that is wrong, before anything runs. spent_s: of the budget,
        before now."""
        self.switch, self._target = Switch(stage.panel), stage.target
        present = stage.panel.knobs.as_dict()
        self._present = {name: present[name] for name in grid[0]}
        self._points: dict[str, dict[str, Any]] = {in_words(self._present): self._present}
        self._points |= {in_words(dict(values)): dict(values) for values in grid}
        self._now = in_words(self._present)
        self._settings = {name: self.switch.read(each) for name, each in self._points.items()}
        self._load, self._figure, self._limits = load, figure, limits
        self._slo = limits.of_a_request
        self._open = load.clients is None and load.limit_s is not None
        self._arrivals = list(load.arrivals()) if self._open else []
        self._budget_s, self._spent_s = budget_s, spent_s
        self._ends = stage.target.clock.now() - spent_s + budget_s
        self._most = most
        self._warmup, self._apply, self._remarks = warmup, apply, tuple(remarks)
        self._race = Race([self._now], self._now)
        self._simulated: dict[str, Report] | None = None
        self._refuted: dict[str, str] = {}
        self._reports: dict[str, list[Report]] = {}
        self._kept: list[Report] = []
        self._pairs: list[tuple[float, float]] = []
        self._trial_s = 0.0
        self._live_s = 0.0
        self._took: dict[str, float] = {}
        self._stopped_for = "interrupted"
        self._no_time = False
        self._cut: Cut = "no"
        self._cut_s = 0.0
        self.applied = False
        super().__init__(2 * most + 2 * FIRST_LOOK, load.about)

    async def run(self) -> TuneResult:
        try:
            if self._warmup and not self.stopped:
                await self.warm_up(self._target, self._load)
            await self._trial(self._now, 0)
            self._propose()
            await self._run_race()
            await self._confirm()
            if self._apply and (winner := self.result().winner) is not None:
                await self.switch.to(self._settings[in_words(winner)])
                self.applied = True
        except GONE as error:
            self.lose(error)
        finally:
            if not self.applied:
                try:
                    await self.switch.back()
                except GONE as error:
                    self.lose(error)
        return self.result()

    def predict(self, predict: Predict) -> None:
        """Simulate every setting, in the caller's thread, before it runs."""
        found = {name: predict(self._load, values) for name, values in self._points.items()}
        self._simulated = {n: report for n, report in found.items() if report is not None}

    def _propose(self) -> None:
        """Which settings race: the best predicted ones, else as many as there is time for."""
        others = [name for name in self._points if name != self._now]
        most = len(others)
        if self._simulated:
            others, most = self._promising(self._simulated), self._most - 1
        else:
            random.Random(_SEED).shuffle(others)
        left = self._left() - FIRST_LOOK * self._cost(self._now) - self._cost(self._now)
        kept: list[str] = []
        for name in others[:most]:
            confirming = 0.0 if kept else FIRST_LOOK * self._cost(name)
            left -= confirming + FEWEST_ROUNDS * self._cost(name)
            if left < 0:
                break
            kept.append(name)
        self._no_time = bool(others) and not kept
        self._race = Race([self._now, *kept], self._now, self._race.values)
        self.runs = 1 + 2 * len(kept) + 2 * FIRST_LOOK

    def _promising(self, reports: Mapping[str, Report]) -> list[str]:
        names = list(self._points)
        values = {name: self._value(report) for name, report in reports.items()}
        keys = {name: _alike(report) for name, report in reports.items()}
        places = proposals(
            list(self._points.values()), {names.index(name): v for name, v in values.items()},
            self._present, len(names), lambda place: keys[names[place]],
        )  # fmt: skip
        measured, predicted = self._mean(self._now), values.get(self._now)
        best = max(values.values(), default=0.0)
        trusted = predicted is not None and measured is not None and (
            abs(predicted - measured) <= _TRUSTED * max(predicted, measured, best / 2)
        )  # fmt: skip
        least = _NEAR * best if trusted else 0.0
        return [
            name
            for name in (names[place] for place in places)
            if name != self._now and keys[name] != keys.get(self._now) and values[name] >= least
        ]

    async def _run_race(self) -> None:
        race = self._race
        if self._no_time:
            if not self.stopped:
                self._stopped_for = f"{BUDGET}, before another setting could race"
            return
        for round_ in range(MOST_ROUNDS):
            others = [name for name in race.racing if name != race.leader]
            for name in (race.leader, *(others if round_ % 2 == 0 else others[::-1])):
                if round_ == 0 and name == self._now:
                    continue  # the present one's first trial came before the proposals
                if self.stopped or self._left() < self._reserve() + self._cost(name):
                    self._stopped_for = "interrupted" if self.stopped else BUDGET
                    return
                await self._trial(name, round_)
            for lost in race.eliminate():
                half = f" ±{number(lost.by.half)}" if lost.by.half is not None else ""
                self._refuted[lost.name] = (
                    f"{number(lost.by.value)}{half} behind {lost.leader}, after "
                    f"{round_ + 1} rounds"
                )
            if race.decided:
                self._stopped_for = NOTHING_LEFT
                return
        self._stopped_for = f"{MOST_ROUNDS} rounds, and what is left is not distinct"

    async def _trial(self, name: str, round_: int) -> None:
        words = f"round {round_ + 1}: {name}"
        best = max((v[round_] for v in self._race.values.values() if round_ in v), default=0.0)
        report = await self._measured(name, round_, words, best)
        if report is None:
            return
        value = self._value(report)
        self._race.add(name, round_, value)
        self._reports.setdefault(name, []).append(report)
        if self._figure != "goodput_per_s" and self._breaks(name):
            self._refuted[name] = f"breaks the SLO ({self._limits})"
            if len(self._race.racing) > 1:
                self._race.withdraw(name)

    async def _measured(
        self, name: str, round_: int, words: str, best: float
    ) -> Report | None:
        """None where it could not be tried, or did not come to its end in the budget."""
        clock = self._target.clock
        try:
            await self.switch.to(self._settings[name])
        except NeedsRestart as error:
            self._refuted[name] = f"not tried: {error}"
            self._race.withdraw(name)
            return None
        began = clock.now()
        self._cut = "no"
        cuts: list[tuple[float, Cut]] = [(self._ends, "budget")]
        cuts.append((began + self._longest(), "overlong"))
        cuts += [(began + self._hopeless(best), "hopeless")] if best > 0 and self._open else []
        watch = asyncio.create_task(self._stop_at(*min(cuts)))
        try:
            load = self._load.with_seed(getattr(self._load, "seed", 0) + round_)
            report = await self.measure(words, self._target, load, self._slo)
        finally:
            watch.cancel()
            self._cut_s = took = clock.now() - began
            self._live_s += took
        self._trial_s = max(self._trial_s, took)
        self._took[name] = max(took, self._took.get(name, 0.0))
        if report.interrupted and (self.stopped or self._ended_by("budget")):
            return None
        self._kept.append(report)
        return report

    def _ended_by(self, why: Cut) -> bool:
        return self._cut == why

    async def _stop_at(self, when: float, why: Cut) -> None:
        if when == math.inf:
            return
        await self._target.clock.sleep_until(when)
        if self._bench is not None:
            self._cut = why
            self._bench.stop()

    def _longest(self) -> float:
        """After so long nobody who has not ended can meet the SLO: a trial that still answers then
        is cut, and what it answered counts."""
        if not self._open:
            return math.inf
        arrive_s, slo = self._load.limit_s or 0.0, self._slo
        allowed = arrive_s
        if slo is not None:
            most = max((each.max_tokens for each in self._arrivals), default=0)
            parts = (slo.ttft_ms or 0.0, (slo.tpot_ms or 0.0) * most, slo.e2e_ms or 0.0)
            allowed = max(allowed, sum(parts) / 1e3)
        return arrive_s + allowed

    def _hopeless(self, best: float) -> float:
        """After so many seconds a run cannot come near this figure any more, whatever is still to
        come: its arrivals are known, and those who then have no first token are too late."""
        late_s = 0.0 if self._slo is None else (self._slo.ttft_ms or 0.0) / 1e3
        return max(_HOPELESS * self._full() / best, (self._load.limit_s or 0.0) + late_s)

    def _full(self) -> float:
        """What the figure is of a second in which all of the load is served."""
        if self._figure == "generated_tokens_per_s":
            return float(sum(each.max_tokens for each in self._arrivals))
        return float(len(self._arrivals))

    def _at_most(self, report: Report) -> float:
        """The most that the figure could still be of a trial that was cut as hopeless."""
        served = self._full()
        if self._figure == "goodput_per_s" and report.met is not None:
            late = self._slo is not None and self._slo.ttft_ms is not None
            under_way = report.ttft.n - report.n if late else served - report.n
            served = report.met + max(0.0, under_way)
        return served / self._cut_s

    async def _confirm(self) -> None:
        """Pairs of fresh arrivals, the leader and the present setting in turns: the last word."""
        leader = self._race.leader
        if leader == self._now or self.stopped:
            return
        for pair in range(MOST_PAIRS):
            if confirmed(self._pairs):
                break
            if self._left() < self._cost(leader) + self._cost(self._now):
                self._stopped_for = BUDGET
                break
            found: dict[str, float] = {}
            for name in (leader, self._now) if pair % 2 == 0 else (self._now, leader):
                words = f"confirming, pair {pair + 1}: {name}"
                best = found.get(leader, 0.0) if name == self._now else 0.0
                report = await self._measured(name, MOST_ROUNDS + pair, words, best)
                if report is None:
                    return
                found[name] = self._value(report)
                self._reports.setdefault(name, []).append(report)
            self._pairs.append((found[leader], found[self._now]))

    def _left(self) -> float:
        return self._ends - self._target.clock.now()

    def _reserve(self) -> float:
        """For the confirming runs."""
        racing = [name for name in self._race.racing if name != self._now]
        other = max((self._cost(name) for name in racing), default=0.0)
        return FIRST_LOOK * (self._cost(self._now) + other)

    def _cost(self, name: str) -> float:
        """Seconds that a trial of it takes: as it took, as it is predicted, or as the longest."""
        if name in self._took:
            return self._took[name]
        simulated = (self._simulated or {}).get(name)
        return self._trial_s if simulated is None else min(simulated.duration_s, self._longest())

    def _value(self, report: Report) -> float:
        if report.interrupted and self._cut == "hopeless":
            return self._at_most(report)
        value = report.figures().get(self._figure)
        if report.interrupted and value and self._cut_s > report.duration_s:
            value *= report.duration_s / self._cut_s  # nobody ended in what came last
        broken = self._figure != "goodput_per_s" and self._limits.worst(report) > 1
        return 0.0 if value is None or broken else float(value)

    def _breaks(self, name: str) -> bool:
        worst = [self._limits.worst(report) for report in self._reports[name]]
        return worst[-1] > 1.5 or (len(worst) > 1 and min(worst) > 1)

    def result(self) -> TuneResult:
        leader = self._race.leader
        cliff = cliffs(
            [(v, m) for n, v in self._points.items() if (m := self._mean(n)) is not None],
            self._points[leader],
        )
        return TuneResult(
            workload=str(self._load),
            slo=str(self._limits),
            figure=self._figure,
            present=self._present,
            best=self._points[leader],
            points=tuple(self._tried(name, values) for name, values in self._points.items()),
            pairs=tuple(self._pairs),
            slo_shares=self._shares(leader),
            stopped="; ".join([self._stopped_for, *map(str, cliff)]),
            spent_s=self._budget_s - self._left(),
            budget_s=self._budget_s,
            calibration_s=self._spent_s,
            live_s=self._live_s,
            applied=self.applied,
            remarks=self._remarks,
            runs=tuple(self._kept),
            interrupted=self.stopped and self.lost is None,
            lost=self.lost,
        )

    def _tried(self, name: str, values: dict[str, Any]) -> Tried:
        found = self._reports.get(name, ())
        simulated = (self._simulated or {}).get(name)
        ttfts = [r.ttft.p95 for r in found if r.ttft.p95 is not None]
        return Tried(
            values=values,
            predicted=None if simulated is None else self._value(simulated),
            trials=tuple(self._race.values.get(name, {}).values()),
            ttft_p95_s=sum(ttfts) / len(ttfts) if ttfts else None,
            refuted=self._refuted.get(name),
        )

    def _mean(self, name: str) -> float | None:
        found = self._race.values.get(name)
        return sum(found.values()) / len(found) if found else None

    def _shares(self, name: str) -> dict[str, float]:
        found = [self._limits.shares(report) for report in self._reports.get(name, ())]
        return {
            limit: sum(each[limit] for each in found) / len(found)
            for limit in (found[0] if found else ())
        }


def _alike(report: Report) -> object:
    """Settings of which the simulator says the same in all of these are one."""
    parts = (report.ttft.p95, report.ttft.mean, report.itl.mean, report.duration_s)
    return tuple(None if part is None else number(part * 1e3) for part in parts)
