"""The largest rate of requests that meets an SLO, measured on a live server by bisection."""

from __future__ import annotations

import asyncio
import html
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from llmserve.bench.load.workload import Load, Workload
from llmserve.bench.results.report import Report
from llmserve.bench.run.cell import live, make_load, nothing, run_job
from llmserve.bench.run.driver import Target
from llmserve.bench.run.job import Job
from llmserve.core.quantities import duration
from llmserve.core.validation import real
from llmserve.lab.tuning.bisection import Bisection
from llmserve.lab.tuning.limits import Limits, read_limits
from llmserve.lab.tuning.tune import TRIAL_S
from llmserve.serving.runtime import Runtime

START = 1.0
_OVERLONG = 3.0
"""A run that takes so many times as long as its arrivals breaks any limit: it is stopped."""
_MOST_EXPECTED = 20


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """One rate: each run's largest share of a limit, and what came of it."""

    rate: float
    shares: tuple[float, ...]
    verdict: str | None
    shown: bool
    low: float | None = None
    high: float | None = None
    """Of the geometric mean of the shares, both ends of its interval."""


class MaxRate(msgspec.Struct, frozen=True, kw_only=True):
    """What `max_rate` gives: print it, or show it as a cell's last line.

    `rate` is the largest that met the SLO (None where none did), `breaks_at` the smallest that
    broke it, `stopped` why it ended.
    """

    workload: str
    slo: str
    rate: float | None
    breaks_at: float | None
    cliff: float | None = None
    """By how much the worst figure grows between the two, where that is a cliff."""
    probed: tuple[Probed, ...]
    stopped: str
    spent_s: float
    n: int = 0
    """Requests that ended well."""
    interrupted: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        if self.rate is None:
            least = "no rate" if self.breaks_at is None else f"{self.breaks_at:.3g} requests/s"
            return f"no rate was seen to meet {self.slo}; {least} broke it"
        share = next(each for each in self.probed if each.rate == self.rate)
        words = f"{self.rate:.3g} requests/s meet {self.slo} ({_share(share)})"
        if self.breaks_at is None:
            return f"{words}; no rate broke it"
        other = next(each for each in self.probed if each.rate == self.breaks_at)
        words += f"; {self.breaks_at:.3g} break it ({_share(other)})"
        if self.cliff is None:
            return words
        return f"{words}: cliff between {self.rate:.3g} and {self.breaks_at:.3g}"

    def warnings(self) -> list[str]:
        found = [*self.remarks]
        found += [
            f"{each.rate:.3g} requests/s: {each.verdict} by its mean, and is not shown to"
            for each in self.probed
            if each.verdict is not None and not each.shown and each.rate in
            (self.rate, self.breaks_at)
        ]  # fmt: skip
        return [*found, "interrupted"] if self.interrupted else found

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> MaxRate:
        """What `to_json` wrote; msgspec.ValidationError for anything else."""
        return msgspec.json.decode(text, type=cls)

    def to_markdown(self) -> str:
        rows = ["| requests/s | runs | of the limit | verdict |", "| ---: | ---: | ---: | --- |"]
        rows += [
            f"| {each.rate:.3g} | {len(each.shares)} | {_share(each)} | {each.verdict or '–'} |"
            for each in self.probed
        ]
        return "\n".join([*self._words(), "", *rows])

    def __str__(self) -> str:
        rows = [
            f"{each.rate:>8.3g} requests/s  {each.verdict or '–':<8}{_share(each)}"
            for each in self.probed
        ]
        return "\n".join([*self._words(), "", *rows])

    def _repr_pretty_(self, page: Any, cycle: bool) -> None:
        page.text(str(self))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def _words(self) -> list[str]:
        return [
            self.verdict,
            f"stopped: {self.stopped}; {duration(self.spent_s)} spent",
            self.workload,
            *self.warnings(),
        ]


def _share(each: Probed) -> str:
    mean = math.exp(sum(map(math.log, each.shares)) / len(each.shares))
    if mean > 100:
        return "far above its limit"
    if each.low is None or each.high is None:
        return f"{mean:.0%} of its limit"
    return f"{mean:.0%} of its limit, {each.low:.0%} to {min(each.high, 99):.0%}"


class RateSearch(Job[MaxRate]):
    """Runs of one load at one rate after the other."""

    def __init__(
        self, target: Target, load: Workload, limits: Limits, *, budget_s: float,
        start: float = START, warmup: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(_MOST_EXPECTED, None)
        self._target, self._load, self._limits = target, load, limits
        self._search, self._warmup = Bisection(start), warmup
        self._began = target.clock.now()
        self._budget_s, self._trial_s = budget_s, 0.0
        self._stopped_for, self._n = "interrupted", 0
        self._cut = False

    async def run(self) -> MaxRate:
        if self._warmup and not self.stopped:
            await self.warm_up(self._target, self._load)
        while not self.stopped:
            rate = self._search.following()
            if rate is None:
                low, high = self._search.low, self._search.high
                self._stopped_for = f"the bracket is {low:.3g} to {high:.3g} requests/s"
                break
            if self._spent() + self._trial_s > self._budget_s:
                self._stopped_for = "budget"
                break
            await self._run_at(rate)
        return self.result()

    async def _run_at(self, rate: float) -> None:
        number = len(self._search.shares.get(rate, ()))
        load = replace(self._load, rate=rate).with_seed(self._load.seed + number)
        began = self._target.clock.now()
        self._cut = False
        watch = asyncio.create_task(self._stop_late(began))
        try:
            report = await self.measure(
                f"{rate:.3g} requests/s, run {number + 1}", self._target, load,
                self._limits.of_a_request,
            )  # fmt: skip
        finally:
            watch.cancel()
            self._trial_s = max(self._trial_s, self._target.clock.now() - began)
        self._n += report.n
        if not report.interrupted:
            self._search.add(rate, self._share(report))
        elif self._cut and not self.stopped:
            self._search.add(rate, 1e6)

    def _share(self, report: Report) -> float:
        return 1e-6 if report.sent == 0 else self._limits.worst(report)  # nobody came

    async def _stop_late(self, began: float) -> None:
        arrive_s = self._load.limit_s or TRIAL_S
        longest = max(most for most in self._limits.most_ms.values()) / 1e3
        latest = began + _OVERLONG * (arrive_s + longest)
        left = self._began + self._budget_s
        await self._target.clock.sleep_until(min(latest, left))
        if self._bench is not None:
            self._cut = latest <= left
            self._bench.stop()

    def _spent(self) -> float:
        return self._target.clock.now() - self._began

    def result(self) -> MaxRate:
        found = self._search
        low, high = found.low, found.high
        return MaxRate(
            workload=str(self._load), slo=str(self._limits),
            rate=low or None, breaks_at=None if math.isinf(high) else high,
            cliff=found.cliff, stopped=self._stopped_for, spent_s=self._spent(), n=self._n,
            probed=tuple(_probed(found, rate) for rate in sorted(found.shares)),
            interrupted=self.stopped,
        )  # fmt: skip


def _probed(search: Bisection, rate: float) -> Probed:
    found = search.spread(rate)
    ends = (None, None) if found is None else (found.low, found.high)
    low, high = (None if end is None else math.exp(min(end, 50.0)) for end in ends)
    return Probed(
        rate=rate, shares=tuple(search.shares[rate]), verdict=search.verdict(rate),
        shown=search.shown(rate), low=low, high=high,
    )  # fmt: skip


def max_rate(
    runtime: Runtime,
    target: Target,
    load: Load | None = None,
    *,
    slo: Mapping[str, Any] | str,
    budget_s: float = 120.0,
    start: float = START,
    warmup: bool = True,
    progress: bool = True,
    **workload: Any,
) -> MaxRate:
    """As a cell calls it. The load is an open loop; its rate is what is searched, from `start`."""
    limits = read_limits(slo)
    if not limits.most_ms:
        raise ValueError("max_rate searches for what an SLO allows: slo={'ttft_p95_ms': 300}")
    budget_s = real("budget_s", budget_s, 1, 86_400, "s")
    start = real("start", start, 0, 100_000, "requests/s", above=True)
    if "rate" in workload:
        raise ValueError("the rate is what is searched: leave it out, or give start=")
    if load is None:
        workload.setdefault("rate", start)
        if not {"duration", "duration_s", "requests"} & workload.keys():
            workload["duration_s"] = TRIAL_S
    made = make_load(load, workload)
    if not isinstance(made, Workload) or made.clients is not None:
        raise ValueError("max_rate changes the rate of a load: give it a Workload(rate=…)")
    job = RateSearch(target, made, limits, budget_s=budget_s, start=start, warmup=warmup)
    return run_job(runtime, job, progress=progress, watch=live(job) if progress else nothing)
