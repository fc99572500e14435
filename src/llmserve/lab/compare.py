"""Compare two ways to serve: the same arrivals for both, in turns, A B B A.

Turns cancel a drift of the machine: whatever grows warmer or slower evenly weighs on both sides.
"""

from __future__ import annotations

from typing import Any

from llmserve.bench.load.workload import Load, Workload
from llmserve.bench.results.report import Report
from llmserve.bench.results.slo import Slo, parse_slo
from llmserve.bench.run.cell import live, make_load, nothing, run_job
from llmserve.bench.run.job import GONE, Job
from llmserve.core.validation import whole
from llmserve.lab.comparison import Comparison
from llmserve.lab.settings import Setting, Side, Stage, Switch
from llmserve.serving.runtime import Runtime

PAIRS = 6


class Comparing(Job[Comparison]):
    """Pairs of runs; each pair has arrivals of its own, the same for both sides."""

    def __init__(
        self,
        a: Side,
        b: Side,
        load: Load,
        *,
        pairs: int = PAIRS,
        warmup: bool = True,
        slo: Slo | None = None,
        seed: int = 0,
    ) -> None:
        pairs = whole("pairs", pairs, 2, unit="pairs", exact=True)
        super().__init__(2 * pairs, load.about)
        self._sides = {"A": a, "B": b}
        self._load, self._slo, self._seed = load, slo, seed
        self._pairs, self._warmup = pairs, warmup
        self._ended: dict[str, list[Report]] = {"A": [], "B": []}
        self._order = ""

    async def run(self) -> Comparison:
        for side in self._sides.values():
            if self._warmup and not self.stopped:
                await side.enter()
                await self.warm_up(side.target, self._load)
        for pair in range(self._pairs):
            for name in "AB" if pair % 2 == 0 else "BA":
                if not self.stopped:
                    await self._one(name, pair)
        return self.result()

    async def _one(self, name: str, pair: int) -> None:
        side, load = self._sides[name], self._load.with_seed(self._seed + pair)
        try:
            await side.enter()
        except GONE as error:
            self.lose(error)
            return
        words = f"{name}, pair {pair + 1} of {self._pairs}"
        report = await self.measure(words, side.target, load, self._slo)
        if not report.interrupted:
            self._ended[name].append(report)
            self._order += name

    def result(self) -> Comparison:
        whole = min(len(ended) for ended in self._ended.values())
        return Comparison(
            a=self._sides["A"].label,
            b=self._sides["B"].label,
            workload=str(self._load),
            runs_a=tuple(self._ended["A"][:whole]),
            runs_b=tuple(self._ended["B"][:whole]),
            planned=self._pairs,
            order=self._order,
            interrupted=self.stopped,
            lost=self.lost,
        )


def compare(
    runtime: Runtime,
    stage: Stage,
    a: Setting,
    b: Setting,
    load: Load | None = None,
    *,
    pairs: int = PAIRS,
    warmup: bool = True,
    slo: Slo | str | None = None,
    progress: bool = True,
    **workload: Any,
) -> Comparison:
    """As a cell calls it: waits, shows progress; an interrupt keeps the pairs that ended."""
    load = make_load(load, workload)
    seed = load.seed if isinstance(load, Workload) else 0
    switch = Switch(stage.panel)
    job = Comparing(
        switch.side(a, stage.target), switch.side(b, stage.target), load,
        pairs=pairs, warmup=warmup, slo=parse_slo(slo), seed=seed,
    )  # fmt: skip
    try:
        run_job(runtime, job, progress=progress, watch=live(job) if progress else nothing)
    finally:
        try:
            runtime.call(switch.back())
        except GONE as error:
            job.lose(error)
    return job.result()
