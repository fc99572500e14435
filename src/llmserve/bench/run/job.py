"""Job: several runs, one after the other, that a cell can watch and stop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from llmserve.bench.load.workload import Load
from llmserve.bench.results.report import Report
from llmserve.bench.results.slo import Slo
from llmserve.bench.run.driver import Bench, Progress, Target
from llmserve.engines.base import EngineError

GONE = (OSError, EngineError)
"""What a server raises that does not answer, elsewhere or here."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class State:
    """How far a job is; read from any thread."""

    words: str
    """The run that is under way."""
    runs_done: int
    runs: int
    done: int
    """Requests that ended, in all runs."""
    total: int | None
    running: int
    failed: int
    tokens_per_s: float
    """Of the run under way."""
    tokens: int
    """Of all runs so far."""


class Driver(Protocol):
    """One run; `Bench` is one."""

    @property
    def progress(self) -> Progress: ...
    async def run(self) -> Report: ...
    def stop(self) -> None: ...
    def report(self) -> Report: ...


@runtime_checkable
class Drives(Protocol):
    """A target that has a driver of its own."""

    def drive(self, load: Load, slo: Slo | None) -> Driver: ...


def driver_of(target: Target, load: Load, slo: Slo | None) -> Driver:
    return target.drive(load, slo) if isinstance(target, Drives) else Bench(target, load, slo=slo)


class Job(ABC, Generic[T]):
    """`run` on the loop; `state` and `result` from any thread; `stop` on the loop."""

    def __init__(self, runs: int, per_run: int | None) -> None:
        self.runs = runs
        self.stopped = False
        self.lost: str | None = None
        """Why it could not go on, where a server stopped answering."""
        self._per_run = per_run
        self._bench: Driver | None = None
        self._words = ""
        self._runs_done = self._done = self._failed = self._tokens = 0

    @abstractmethod
    async def run(self) -> T: ...

    @abstractmethod
    def result(self) -> T:
        """What was measured so far."""

    def stop(self) -> None:
        """End early and keep what was measured."""
        self.stopped = True
        if self._bench is not None:
            self._bench.stop()

    def lose(self, why: Exception) -> None:
        """End early, for a server let no knob be turned, and keep what was measured."""
        self.lost = f"{why}; its knobs may not be what they were"
        self.stop()

    @property
    def state(self) -> State:
        bench, done, failed, running, rate = self._bench, self._done, self._failed, 0, 0.0
        tokens = self._tokens
        if bench is not None:
            now = bench.progress
            done, failed = done + now.good + now.failed, failed + now.failed
            running = now.sent - now.good - now.failed
            rate = now.tokens / now.elapsed_s if now.elapsed_s > 0 else 0.0
            tokens += now.tokens
        total = None if self._per_run is None else self.runs * self._per_run
        return State(
            self._words, self._runs_done, self.runs, done, total, running, failed, rate, tokens
        )

    async def measure(self, words: str, target: Target, load: Load, slo: Slo | None) -> Report:
        """One run, the caches empty before it unless the load wants them."""
        if not load.same_prompts:
            await target.reset_cache()
        bench = driver_of(target, load, slo)
        self._words, self._bench = words, bench
        if self.stopped:
            bench.stop()
        try:
            report = await bench.run()
        finally:
            now = bench.progress
            self._bench = None
            self._done += now.good + now.failed
            self._failed += now.failed
            self._tokens += now.tokens
            self._runs_done += 1
        return report

    async def warm_up(self, target: Target, load: Load) -> Report:
        """A few requests of the same sorts, whose figures are not among the others."""
        bench = driver_of(target, load.warm_up(), None)
        self._words, self._bench = "warm-up", bench
        try:
            return await bench.run()
        finally:
            self._bench = None
