"""`Bench` sends a workload's arrivals to a target, in time, and keeps what was measured.

An open loop never waits for an answer before it sends the next request, and latencies count from
the scheduled arrival: a stall is charged to all who would have come meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import msgspec

from llmserve.bench.load.prompts import prompt_of
from llmserve.bench.load.workload import Arrival, Load
from llmserve.bench.results.cache_figures import CacheLog
from llmserve.bench.results.recorder import BenchRecorder
from llmserve.bench.results.report import CLIENT_LIMIT, Report
from llmserve.bench.results.slo import Slo
from llmserve.core.clock import Clock
from llmserve.core.events import EventBus
from llmserve.core.types import Request, SamplingParams
from llmserve.engines.base import CachesPrefixes, EngineError
from llmserve.observe import Telemetry
from llmserve.observe.window import Samples, Summary
from llmserve.serving.requests import Sender, make_request, read_sampling
from llmserve.serving.service import Service
from llmserve.serving.stream import Refused, RequestTimeout

MAX_OUTSTANDING = 10_000
_LAGS = 65_536
BACK_OFF_S = 0.1
"""A client of a closed loop waits so long after a refusal, or it would do nothing but knock."""


@dataclass(frozen=True, slots=True)
class Progress:
    sent: int
    good: int
    failed: int
    elapsed_s: float
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """A chat so far, prompt and reply: as tokens where they are known, else as text."""

    ids: tuple[int, ...] = ()
    text: str = ""
    tokens: int = 0


class Target(Protocol):
    """Where requests go. Their events appear on its bus: a fold measures, not the sender."""

    @property
    def clock(self) -> Clock: ...

    @property
    def bus(self) -> EventBus: ...

    @property
    def sees_cache(self) -> bool:
        """Whether every first token's event says how much of the prompt was cached."""
        ...

    def prepare(
        self, arrival: Arrival, run_salt: int, said: Said | None = None
    ) -> Callable[[float], Request]:
        """All work that can be done ahead; the result makes the request of a scheduled time.

        said: what was said before, where this is a chat's later turn.
        """
        ...

    async def send(self, request: Request) -> Said | None:
        """Return when it has ended: all that was said so far, None when it was not served.
        Cancelling cancels the request."""
        ...

    async def reset_cache(self) -> None:
        """Forget cached prefixes, where that can be options for."""
        ...


@runtime_checkable
class LooksUp(Protocol):
    """A target with a response cache before it."""

    def begin(self) -> CacheLog:
        """Begin a run: what the cache does is kept in this log from now on."""
        ...


class ServiceTarget:
    """The service in this process, on its own loop."""

    sees_cache = True

    def __init__(self, service: Service, bus: EventBus) -> None:
        self._service = service
        self.clock = service.clock
        self.bus = bus

    def prepare(
        self, arrival: Arrival, run_salt: int, said: Said | None = None
    ) -> Callable[[float], Request]:
        history = () if said is None else said.ids
        prompt = prompt_of(self._service.engine.tokenizer, arrival, run_salt, history)
        return maker(arrival, prompt, lambda: self._service.new_id("bench"))

    async def send(self, request: Request) -> Said | None:
        try:
            outcome = await self._service.submit(request).collect()
        except (Refused, RequestTimeout, EngineError):
            return None  # why is known by the service's event
        ids = (*request.prompt_ids, *outcome.token_ids)
        return Said(ids=ids, tokens=len(ids))

    async def reset_cache(self) -> None:
        engine = self._service.engine
        if isinstance(engine, CachesPrefixes):
            with suppress(EngineError):  # it died: what the next request starts has none
                await engine.reset_cache()


def maker(
    arrival: Arrival, prompt: tuple[int, ...], new_id: Callable[[], str], payload: Any = None
) -> Callable[[float], Request]:
    """Return what makes the request of an arrival, at its scheduled time."""
    sampling = _sampling(arrival.max_tokens)
    sender = _sender(arrival.priority, arrival.tenant, arrival.ttft_slo_ms)
    return lambda when: make_request(
        new_id(), prompt, sampling, arrival=when, sender=sender, payload=payload
    )


@lru_cache(4096)
def _sampling(max_tokens: int) -> SamplingParams:
    return read_sampling({"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True})


@lru_cache(4096)
def _sender(priority: int, tenant: str, ttft_slo_ms: float | None) -> Sender:
    return Sender(priority, tenant, ttft_slo_ms)


def run_salt(load: Load) -> int:
    """What makes a run's prompts unlike those of any other run; 0 where they shall be the same."""
    return 0 if load.same_prompts else secrets.randbits(48)


class Bench:
    """One run of a load. `report` may be read from any thread, during the run and after it."""

    def __init__(
        self,
        target: Target,
        workload: Load,
        *,
        slo: Slo | None = None,
        progress: Callable[[Progress], None] | None = None,
        max_outstanding: int = MAX_OUTSTANDING,
    ) -> None:
        self.workload = workload
        self._target = target
        self._on_progress = progress
        self._max_outstanding = max_outstanding
        self._recorder = BenchRecorder(slo=slo, sees_cache=target.sees_cache)
        self._cache = target.begin() if isinstance(target, LooksUp) else None
        self._run_salt = run_salt(workload)
        self._begun: set[int] = set()
        """Salts of the shared prefixes that were sent already."""
        self._outstanding = 0
        self._started: float | None = None
        self._lags = Samples(2, _LAGS)  # t, lag
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
        report = self._recorder.report(
            str(self.workload),
            lag=Summary.of(self._lags.window(-math.inf, math.inf)[:, 1]),
            interrupted=self._interrupted,
            same_prompts=self.workload.same_prompts,
        )
        cache = None if self._cache is None else self._cache.figures()
        return msgspec.structs.replace(report, response_cache=cache)

    @property
    def progress(self) -> Progress:
        sent, good, failed, tokens = self._recorder.counts
        if (cache := self._cache) is not None:
            sent, good, failed = sent + cache.hits, good + cache.hits, failed + cache.failed
        started = self._started
        elapsed = 0.0 if started is None else self._target.clock.now() - started
        return Progress(sent, good, failed, elapsed, tokens)

    async def _send_all(self) -> None:
        arrivals = self.workload.arrivals()
        self._started = self._target.clock.now()
        async with asyncio.TaskGroup() as group:
            if self.workload.clients is None:
                await self._open_loop(group, arrivals, self._started)
            else:
                for _ in range(self.workload.clients):
                    group.create_task(self._place(arrivals, self._started))

    async def _open_loop(
        self, group: asyncio.TaskGroup, arrivals: Iterator[Arrival], started: float
    ) -> None:
        clock = self._target.clock
        for arrival in arrivals:
            make = self._target.prepare(arrival, self._run_salt)
            when = started + arrival.at_s
            await clock.sleep_until(when)
            self._lags.append(when, max(0.0, clock.now() - when))
            if self._outstanding >= self._max_outstanding:
                self._recorder.refuse(when, CLIENT_LIMIT)
            else:
                self._outstanding += 1
                group.create_task(self._converse(arrival, make(when)))

    async def _place(self, arrivals: Iterator[Arrival], started: float) -> None:
        """One client of the closed loop: the next request when the last has ended."""
        clock, limit_s = self._target.clock, self.workload.limit_s
        ended: float | None = None
        for arrival in arrivals:
            make = self._target.prepare(arrival, self._run_salt)
            now = clock.now()
            if limit_s is not None and now >= started + limit_s:
                return
            if ended is not None:
                self._lags.append(now, now - ended)
            self._outstanding += 1
            served = await self._converse(arrival, make(now))
            if not served:
                await clock.sleep_until(clock.now() + BACK_OFF_S)
            ended = clock.now()

    async def _converse(self, arrival: Arrival, request: Request) -> bool:
        """A request, or a whole chat: each turn is due when its reply was read and thought of."""
        clock = self._target.clock
        try:
            said = await self._send(request, arrival, 0)
            for number in range(1, len(arrival.later) + 1):
                if said is None:
                    break
                due = clock.now() + arrival.think_s
                turn = arrival.turn(number)
                make = self._target.prepare(turn, self._run_salt, said)
                await clock.sleep_until(due)
                self._lags.append(due, max(0.0, clock.now() - due))
                said = await self._send(make(due), turn, said.tokens)
            return said is not None
        finally:
            self._outstanding -= 1

    async def _send(self, request: Request, arrival: Arrival, known: int | None) -> Said | None:
        """`known`: tokens of its prompt that the server has seen in this run."""
        requested = arrival.prompt_tokens + (known or 0)
        if arrival.repeat:
            known = arrival.prompt_tokens if request.prompt_ids else None
        elif arrival.prefix_tokens and arrival.prefix_salt in self._begun:
            known = arrival.prefix_tokens if request.prompt_ids else None
        elif arrival.prefix_tokens:
            self._begun.add(arrival.prefix_salt)
        self._recorder.expect(
            request.id, shared_tokens=known, ttft_slo_ms=arrival.ttft_slo_ms,
            requested_tokens=requested,
        )
        try:
            return await self._target.send(request)
        finally:
            if self._on_progress is not None:
                self._on_progress(self.progress)


async def run_bench(
    service: Service,
    telemetry: Telemetry,
    workload: Load,
    *,
    slo: Slo | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Run a workload against a service, on its loop."""
    target = ServiceTarget(service, telemetry.bus)
    return await Bench(target, workload, slo=slo, progress=progress).run()
