"""Repeats: the same workload several times over, after a warm-up that does not count."""

from __future__ import annotations

from llmserve.bench.load.workload import Load
from llmserve.bench.results.report import Report
from llmserve.bench.results.result import Result
from llmserve.bench.results.slo import Slo
from llmserve.bench.run.driver import Target
from llmserve.bench.run.job import Job
from llmserve.core.validation import whole

REPEATS = 3


class Repeats(Job[Result]):
    """Each run has arrivals of its own (the next seed), so that their luck is in the interval."""

    def __init__(
        self,
        target: Target,
        load: Load,
        *,
        repeats: int = REPEATS,
        warmup: bool = True,
        slo: Slo | None = None,
        engine: str = "",
        model: str = "",
        seed: int = 0,
    ) -> None:
        """`seed`: the first run's, where the load's own is to be changed."""
        repeats = whole("repeats", repeats, 1, exact=True)
        super().__init__(repeats, load.about)
        self._target, self._load, self._slo = target, load, slo
        self._warmup, self._seed = warmup, seed
        self._engine, self._model = engine, model
        self._ended: list[Report] = []
        self._partial: Report | None = None

    async def run(self) -> Result:
        if self._warmup and not self.stopped:
            await self.warm_up(self._target, self._load)
        for number in range(self.runs):
            if self.stopped and (self._ended or self._partial):
                break
            load = self._load if number == 0 else self._load.with_seed(self._seed + number)
            report = await self.measure(
                f"run {number + 1} of {self.runs}", self._target, load, self._slo
            )
            if report.interrupted:
                self._partial = report
            else:
                self._ended.append(report)
        return self.result()

    def result(self) -> Result:
        partial = self._partial
        if partial is None and self._bench is not None:
            partial = self._bench.report()
        runs = self._ended or ([partial] if partial is not None else [])
        return Result(
            workload=str(self._load),
            engine=self._engine,
            model=self._model,
            runs=tuple(runs),
            planned=self.runs,
            interrupted=self.stopped,
        )
