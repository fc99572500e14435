"""The driver in a process of its own: what it costs to send and to read is not the server's.

The parent draws the arrivals and makes the prompts before the clock starts; the child (this file
run as a module) sends them over HTTP and measures as a client does. What only the server can see
(queue, batches, cache, memory) the parent folds from its bus meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from llmserve.bench.load.prompts import prompt_of
from llmserve.bench.load.workload import Arrival, Load
from llmserve.bench.results.recorder import BenchRecorder
from llmserve.bench.results.report import Report
from llmserve.bench.results.slo import Slo
from llmserve.bench.run.client import Client
from llmserve.bench.run.driver import Bench, Progress, ServiceTarget, run_salt
from llmserve.bench.run.http_target import HttpTarget
from llmserve.core.clock import MonotonicClock
from llmserve.core.events import EventBus
from llmserve.engines.base import EngineError
from llmserve.serving.service import Service

MOST = 100_000
"""Requests whose prompts are made ahead."""
ASKING_RATE = 100.0
"""Requests per second from which an open loop asks for a process of its own, or making and reading
them would take from the loop that serves."""
ENOUGH_CORES = 4
"""Where there are fewer, the driver's process would take its core from the server's."""
_LINE = 2**28
_TICK_S = 0.2
_END_S = 5.0


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is given, as one line; it satisfies `Load`."""

    url: str
    key: str
    model: str
    words: str
    made: list[Arrival]
    prompts: list[list[int]]
    clients: int | None
    limit_s: float | None
    same_prompts: bool
    slo: Slo | None

    @property
    def about(self) -> int:
        return len(self.made)

    @property
    def peak_rate(self) -> None:
        return None  # nobody decides anything by it any more

    def arrivals(self) -> Any:
        return iter(self.made)

    def with_seed(self, seed: int) -> Task:
        return self

    def warm_up(self) -> Task:
        return self

    def __str__(self) -> str:
        return self.words


class Tick(msgspec.Struct, frozen=True, tag=True):
    sent: int
    good: int
    failed: int
    elapsed_s: float
    tokens: int


class Done(msgspec.Struct, frozen=True, tag=True):
    report: Report


def suits(load: Load) -> str | None:
    """Why a load cannot be sent from a process of its own; None where it can."""
    if load.about is None:
        return "it has no end but time (give requests)"
    if load.about > MOST:
        return f"it has more than {MOST:,} requests"
    if any(arrival.later for arrival in itertools.islice(load.arrivals(), MOST)):
        return "its chats answer to replies"
    return None


def usable_cores() -> int:
    """By this process; macOS has no affinity to ask for."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def asks_for_process(load: Load, cores: int) -> bool:
    """The rule of `own_process=None`."""
    rate = load.peak_rate
    fast = rate is not None and rate >= ASKING_RATE
    return fast and cores >= ENOUGH_CORES and suits(load) is None


@dataclass(frozen=True)
class Address:
    url: str
    key: str = field(repr=False)


class ProcessTarget(ServiceTarget):
    """A service whose bench is driven from outside, through its own endpoint."""

    def __init__(self, service: Service, bus: EventBus, address: Address) -> None:
        super().__init__(service, bus)
        self.service = service
        self.address = address

    def drive(self, load: Load, slo: Slo | None) -> ProcessBench:
        return ProcessBench(self, load, slo)


class ProcessBench:
    """As `Bench`: run, stop, progress, report."""

    def __init__(self, target: ProcessTarget, load: Load, slo: Slo | None) -> None:
        self._target, self._load, self._slo = target, load, slo
        self._words = f"{load}, sent over HTTP from a process of its own"
        self._seen = BenchRecorder(everything=True)
        self._tick = Tick(0, 0, 0, 0.0, 0)
        self._report: Report | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._stopped = False

    @property
    def progress(self) -> Progress:
        tick = self._tick
        return Progress(tick.sent, tick.good, tick.failed, tick.elapsed_s, tick.tokens)

    def stop(self) -> None:
        """End early; the child reports what it has measured when its input ends."""
        self._stopped = True
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def report(self) -> Report:
        """The child's figures, and what the server alone could see. Before the end: nothing."""
        if self._report is None:
            return BenchRecorder(slo=self._slo).report(self._words, interrupted=True)
        seen = self._seen.report()
        kept = ("queue", "cached_tokens", "preempted", "kv_peak", "memory_bytes", "batch_fill")
        known = {name: getattr(seen, name) for name in (*kept, "seq_fill")}
        return msgspec.structs.replace(self._report, workload=self._words, **known)

    async def run(self) -> Report:
        task = await asyncio.to_thread(self._task)
        if self._stopped:
            return self.report()
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "llmserve.bench.run.process",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, limit=_LINE, env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # an interrupt of the cell is not the child's
        )  # fmt: skip
        self._target.bus.attach(self._seen)
        try:
            await self._follow(process, task)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _END_S)
        finally:
            self._target.bus.detach(self._seen)
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()
        return self.report()

    def _task(self) -> Task:
        """All work that can be done before the clock starts; in a thread, beside the loop."""
        service, salt = self._target.service, run_salt(self._load)
        made = list(itertools.islice(self._load.arrivals(), MOST))
        tokenizer = service.engine.tokenizer
        return Task(
            url=self._target.address.url,
            key=self._target.address.key,
            model=service.engine.info.model_id,
            words=self._words,
            made=made,
            prompts=[list(prompt_of(tokenizer, arrival, salt)) for arrival in made],
            clients=self._load.clients,
            limit_s=self._load.limit_s,
            same_prompts=self._load.same_prompts,
            slo=self._slo,
        )

    async def _follow(self, process: asyncio.subprocess.Process, task: Task) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        words = asyncio.create_task(process.stderr.read())
        with contextlib.suppress(ConnectionError):
            process.stdin.write(msgspec.json.encode(task) + b"\n")
            await process.stdin.drain()
        if self._stopped:
            process.stdin.close()
        async for line in process.stdout:
            message = msgspec.json.decode(line, type=Tick | Done)
            if isinstance(message, Tick):
                self._tick = message
            else:
                self._report = message.report
        said = (await words).decode(errors="replace").strip()
        if self._report is None and not self._stopped:
            raise EngineError(f"the driver's own process failed: {said[-2000:]}")


async def drive(line: bytes) -> None:
    """The child's whole life: send, report how far it is, and the report."""
    task = msgspec.json.decode(line, type=Task)
    loop = asyncio.get_running_loop()
    prompts = {
        arrival.salt: tuple(ids) for arrival, ids in zip(task.made, task.prompts, strict=True)
    }
    async with contextlib.aclosing(Client(task.url, task.key)) as client:
        target = HttpTarget(client, task.model, MonotonicClock(), prompts=prompts)
        bench = Bench(target, task, slo=task.slo)
        threading.Thread(
            target=_await_end, args=(lambda: loop.call_soon_threadsafe(bench.stop),), daemon=True
        ).start()
        run = asyncio.ensure_future(bench.run())
        while not (await asyncio.wait([run], timeout=_TICK_S))[0]:
            now = bench.progress
            _say(Tick(now.sent, now.good, now.failed, now.elapsed_s, now.tokens))
        _say(Done(run.result()))


def _await_end(stop: Any) -> None:
    """The parent closes our input to end the run; so does its death."""
    sys.stdin.buffer.read()
    with contextlib.suppress(RuntimeError):  # the loop has ended already
        stop()


def _say(message: Tick | Done) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(drive(sys.stdin.buffer.readline()))
    os._exit(0)  # the thread that waits for our input to end would hold the interpreter
