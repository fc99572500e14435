"""Bench: sends a workload's arrivals to a target, in time, and keeps what was measured.

An open loop never waits for an answer before it sends the next request, and latencies count from
the scheduled arrival: a stall is charged to all who would have come meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from llmserve.bench.prompts import make_prompt
from llmserve.bench.recorder import Recorder
from llmserve.bench.report import Report
from llmserve.bench.workload import Arrival, Workload
from llmserve.clock import Clock
from llmserve.core import Request, SamplingParams
from llmserve.engines import EngineError
from llmserve.events import EventBus
from llmserve.observe import Telemetry
from llmserve.service import Service
from llmserve.stream import Refused, RequestTimeout

MAX_OUTSTANDING = 10_000
CLIENT_LIMIT = "client_limit"
"""The error of a request not sent because so many of the driver's were unanswered."""
BACK_OFF_S = 0.1
"""A place of a closed loop waits so long after a refusal, or it would do nothing but knock."""


@dataclass(frozen=True, slots=True)
class Progress:
    sent: int
    good: int
    failed: int
    elapsed_s: float


class Target(Protocol):
    """Where requests go. Their events appear on its bus: a fold measures, not the sender."""

    @property
    def clock(self) -> Clock: ...

    @property
    def bus(self) -> EventBus: ...

    def prepare(self, arrival: Arrival) -> Callable[[float], Request]:
        """All work that can be done ahead; the result makes the request of a scheduled time."""
        ...

    async def send(self, request: Request) -> bool:
        """Return when it has ended: True when it was served. Cancelling cancels the request."""
        ...


class ServiceTarget:
    """The service in this process, on its own loop."""

    def __init__(self, service: Service, bus: EventBus) -> None:
        self._service = service
        self.clock = service.clock
        self.bus = bus

    def prepare(self, arrival: Arrival) -> Callable[[float], Request]:
        prompt = make_prompt(self._service.engine.tokenizer, arrival.prompt_tokens, arrival.salt)
        sampling = SamplingParams(max_tokens=arrival.max_tokens, temperature=0.0, ignore_eos=True)
        return lambda when: Request(
            id=self._service.new_id("bench"),
            prompt_ids=prompt,
            sampling=sampling,
            arrival=when,
            tenant=arrival.tenant,
            priority=arrival.priority,
        )

    async def send(self, request: Request) -> bool:
        try:
            await self._service.submit(request).collect()
        except (Refused, RequestTimeout, EngineError):
            return False  # why is known by the service's event
        return True


class Bench:
    """One run. `report` may be read from any thread, during the run and after it."""

    def __init__(
        self,
        target: Target,
        workload: Workload,
        *,
        progress: Callable[[Progress], None] | None = None,
        max_outstanding: int = MAX_OUTSTANDING,
    ) -> None:
        self.workload = workload
        self._target = target
        self._on_progress = progress
        self._max_outstanding = max_outstanding
        self._recorder = Recorder()
        self._outstanding = 0
        self._started: float | None = None
        self._max_lag = 0.0
        self._interrupted = False
        self._load: asyncio.Task[None] | None = None

    async def run(self) -> Report:
        """Send everything, wait for the answers, report.

        After `stop` it returns what was measured. When this is cancelled what is under way is
        cancelled too, and `report` still has what was measured.
        """
        self._target.bus.attach(self._recorder)
        load = self._load = asyncio.get_running_loop().create_task(self._send_all())
        if self._interrupted:
            self.stop()
        try:
            await asyncio.wait([load])
        except asyncio.CancelledError:
            self.stop()
            await asyncio.wait([load])
            raise
        finally:
            self._target.bus.detach(self._recorder)
        if not load.cancelled():
            load.result()  # raises what the driver itself may have met
        return self.report()

    def stop(self) -> None:
        """End the run early; on the loop's thread (`loop.call_soon_threadsafe(bench.stop)`)."""
        if self._load is None or not self._load.done():
            self._interrupted = True
            self._target.bus.detach(self._recorder)  # first: our own aborts are no errors
        if self._load is not None:
            self._load.cancel()

    def report(self) -> Report:
        return self._recorder.report(
            str(self.workload), max_lag_s=self._max_lag, interrupted=self._interrupted
        )

    @property
    def progress(self) -> Progress:
        sent, good, failed = self._recorder.counts
        started = self._started
        elapsed = 0.0 if started is None else self._target.clock.now() - started
        return Progress(sent, good, failed, elapsed)

    async def _send_all(self) -> None:
        arrivals = self.workload.arrivals()
        self._started = self._target.clock.now()
        async with asyncio.TaskGroup() as group:
            if self.workload.places is None:
                await self._open_loop(group, arrivals, self._started)
            else:
                for _ in range(self.workload.places):
                    group.create_task(self._place(arrivals, self._started))

    async def _open_loop(
        self, group: asyncio.TaskGroup, arrivals: Iterator[Arrival], started: float
    ) -> None:
        clock = self._target.clock
        for arrival in arrivals:
            make = self._target.prepare(arrival)
            when = started + arrival.at_s
            await clock.sleep_until(when)
            self._max_lag = max(self._max_lag, clock.now() - when)
            if self._outstanding >= self._max_outstanding:
                self._recorder.refuse(when, CLIENT_LIMIT)
            else:
                self._outstanding += 1
                group.create_task(self._send(make(when)))

    async def _place(self, arrivals: Iterator[Arrival], started: float) -> None:
        """One place of the closed loop: the next request when the last has ended."""
        clock, limit_s = self._target.clock, self.workload.limit_s
        for arrival in arrivals:
            make = self._target.prepare(arrival)
            now = clock.now()
            if limit_s is not None and now >= started + limit_s:
                return
            self._outstanding += 1
            if not await self._send(make(now)):
                await clock.sleep_until(clock.now() + BACK_OFF_S)

    async def _send(self, request: Request) -> bool:
        self._recorder.expect(request.id)
        try:
            return await self._target.send(request)
        finally:
            self._outstanding -= 1
            if self._on_progress is not None:
                self._on_progress(self.progress)


async def run_bench(
    service: Service,
    telemetry: Telemetry,
    workload: Workload,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Run a workload against a service, on its loop."""
    return await Bench(ServiceTarget(service, telemetry.bus), workload, progress=progress).run()
