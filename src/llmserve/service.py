"""The async shell around the scheduler and the engine; the only publisher of request events.

It awaits and decides nothing: who goes next is the scheduler's word, which tokens now the
engine's. One task per request in the engine; cancelling that task is stopping the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec

from llmserve.admission import Accepted, Rejected
from llmserve.announcer import Announcer
from llmserve.clock import Clock
from llmserve.core import Chunk, FinishReason, ParamError, Request, StepRecord
from llmserve.engines import Engine, EngineError
from llmserve.events import (
    Dispatched,
    EventBus,
    FirstToken,
    Held,
    KnobsSatisfied,
    StepRecorded,
    TokensEmitted,
)
from llmserve.knobs import SPECS, Applied, KnobBoard, KnobError, Knobs, differences
from llmserve.ledger import Ledger
from llmserve.scheduler import Scheduler
from llmserve.stream import Refused, RequestTimeout, Stream
from llmserve.tenants import Terms
from llmserve.user_policy import Choice, PolicyError, UserPolicy

log = logging.getLogger(__name__)

_RESTARTS = 3
"""Attempts to bring back an engine that died, before what waits is told so."""


def publish_step(bus: EventBus, record: StepRecord) -> None:
    """The sink of an engine's steps: called before that step's chunks arrive."""
    now = record.start_s + record.duration_s
    for request_id, reason in record.held:
        bus.publish(Held(t=now, request_id=request_id, reason=reason, step=record.index))
    bus.publish(StepRecorded(t=now, record=record))
    for name in record.satisfied:
        bus.publish(KnobsSatisfied(t=now, name=name, step=record.index))


@dataclass(slots=True)
class _Running:
    stream: Stream
    last: Chunk = Chunk(finish_reason="error")
    failure: Exception | None = None
    ending: FinishReason = "abort"
    """What a cancelled task means: set before cancelling."""
    task: asyncio.Task[None] = field(init=False)


class Service:
    """Submit requests, change knobs. All methods belong to the loop's thread."""

    def __init__(
        self,
        engine: Engine,
        board: KnobBoard,
        bus: EventBus,
        clock: Clock,
        terms: Mapping[str, Terms] | None = None,
    ) -> None:
        """`terms`: of tenants who have some of their own."""
        self.engine = engine
        self.board = board
        self.bus = bus
        self.clock = clock
        self.ready = False
        self.terms: Mapping[str, Terms] = terms or {}
        self.policy_error: PolicyError | None = None
        """Why the last policy of the user's own was removed."""
        self._scheduler = Scheduler(max_model_len=0, terms=self.terms)
        self._tell = Announcer(bus, clock)
        self._queued: dict[str, Stream] = {}
        self._running: dict[str, _Running] = {}
        self._knob_lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._reviving: asyncio.Task[None] | None = None
        self._stopping = False
        self._failed = False
        self._ids = itertools.count(1)

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-{next(self._ids)}"

    async def start(self) -> None:
        """Start the engine and hand it the knobs; EngineError where it cannot start."""
        await self.engine.start()
        await self._adopt_start_knobs()
        self._scheduler.max_model_len = self.engine.info.max_model_len
        self._scheduler.kv_capacity_tokens = self.engine.info.kv_capacity_tokens
        self.ready = True

    async def stop(self) -> None:
        """End every request (waiting ones are refused), then the engine."""
        self._stopping, self.ready = True, False
        if self._timer is not None:
            self._timer.cancel()
        if self._reviving is not None:
            self._reviving.cancel()
        for stream in list(self._queued.values()):
            self._refuse_queued(stream, Rejected("stopping", message="the server is stopping"))
        tasks = [running.task for running in self._running.values()]
        for running in list(self._running.values()):
            running.failure = EngineError("the server was stopped")
            running.task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)
            await asyncio.sleep(0)  # their done callbacks tell the ends
        await self.engine.stop()

    def submit(self, request: Request) -> Stream:
        """Take the request in; Refused where the door says no. Its tokens come by the Stream."""
        terms = self.terms.get(request.tenant)
        if terms is not None and request.ttft_slo_ms is None:
            request = msgspec.structs.replace(request, ttft_slo_ms=terms.ttft_slo_ms)
        self._admit(request, self._scheduler.offer)
        stream = Stream(request, lambda: self._cancel(request.id))
        self._queued[request.id] = stream
        self._tell.submitted(request)
        if self._failed:
            self._revive()
        self._pump()
        return stream

    def admit_kept(self, request: Request) -> None:
        """Refused where its tenant's rate of requests says no to one whose reply is here."""
        self._admit(request, self._scheduler.offer_kept)

    async def set_knobs(self, changes: Mapping[str, object], source: str = "code") -> Applied:
        """Change knobs, all or none (KnobError); return once the engine has adopted them."""
        async with self._knob_lock:
            before = self.board.current
            started = self.clock.now()
            asked = before.changed(changes)
            if asked.policy == "custom" and self._scheduler.user_policy is None:
                raise KnobError("policy", "register a function first, with @session.policy")
            applied = Applied(values=asked, changed=differences(before, asked))
            if any(SPECS[name].layer == "engine" for name in applied.changed) and self.ready:
                engine_part = await self.engine.apply(asked)
                applied = replace(engine_part, changed=differences(before, engine_part.values))
            self.board.update({name: after for name, (_, after) in applied.changed.items()})
            applied = replace(applied, ms=(self.clock.now() - started) * 1e3)
            self._tell.changed(applied, source)
        self._pump()
        return applied

    @property
    def user_policy(self) -> UserPolicy | None:
        """The user's function, with its times; None where there is none or it was removed."""
        return self._scheduler.user_policy

    @property
    def ledger(self) -> Ledger:
        return self._scheduler.ledger

    def weight(self, tenant: str) -> float:
        """Its share under fair_share."""
        return self._scheduler.weight(tenant)

    async def use_policy(self, function: Choice) -> Applied:
        """Let a function that was tried out choose from now on; whoever waits stays in line."""
        policy = UserPolicy(function, self.clock.now)
        self.policy_error = None
        self._scheduler.use(policy, self.clock.now())
        return await self.set_knobs({"policy": "custom"}, source=f"policy {policy.name}")

    def agree(self, terms: Mapping[str, Terms]) -> None:
        """Other terms with tenants from now on, for who waits already too."""
        self.terms = terms
        self._scheduler.agree(terms, self.clock.now())
        self._pump()

    def find(self, request_id: str) -> Request | None:
        """A request that waits or runs."""
        running = self._running.get(request_id)
        stream = self._queued.get(request_id) if running is None else running.stream
        return None if stream is None else stream.request

    def _admit(
        self,
        request: Request,
        offer: Callable[[Request, Knobs, float], Accepted | Rejected],
    ) -> None:
        verdict = (
            Rejected("stopping", message="the server is stopping")
            if self._stopping
            else offer(request, self.board.current, self.clock.now())
        )
        if isinstance(verdict, Rejected):
            self._tell.refused(request, verdict)
            raise Refused(verdict)

    def _pump(self) -> None:
        """Hand over whoever may go, expire whoever may not, and set the next alarm."""
        if self._stopping:
            return
        now, knobs = self.clock.now(), self.board.current
        self._expire(knobs, now)
        while self.ready and (request := self._scheduler.next(knobs, now)) is not None:
            stream = self._queued.pop(request.id)
            self.bus.publish(Dispatched(t=now, request_id=request.id))
            running = self._running[request.id] = _Running(stream)
            running.task = asyncio.get_running_loop().create_task(self._run(running))
            # a task cancelled before its first step runs no `finally` of its own
            running.task.add_done_callback(partial(self._leave, running))
        if (broken := self._scheduler.take_broken()) is not None:
            self._remove_policy(broken)
            knobs = self.board.current
        for request_id, reason in self._scheduler.holds():
            self.bus.publish(Held(t=now, request_id=request_id, reason=reason))
        self._tell.fairness(self._scheduler.fairness)
        self._set_alarm(knobs)

    def _remove_policy(self, broken: PolicyError) -> None:
        """A user's policy failed: the scheduler goes on by fifo already."""
        log.error("the policy was removed, fifo goes on: %s", broken, exc_info=broken)
        self.policy_error = broken
        before, after = self.board.update({"policy": "fifo"})
        applied = Applied(values=after, changed=differences(before, after))
        self._tell.changed(applied, f"policy removed: {broken}")

    async def _run(self, running: _Running) -> None:
        """One request's life in the engine; its end is told by `_leave`."""
        try:
            async with aclosing(self.engine.generate(running.stream.request)) as chunks:
                async for chunk in chunks:
                    running.last = chunk
                    self._deliver(running.stream, chunk)
        except EngineError as error:
            running.failure = error
            self._revive()
        except ParamError as error:
            running.failure = error
        except Exception as error:
            log.exception("request %s failed in the engine", running.stream.request.id)
            running.failure = EngineError(f"the engine failed on this request: {error!r}")

    def _deliver(self, stream: Stream, chunk: Chunk) -> None:
        now, request_id = self.clock.now(), stream.request.id
        if stream.put(chunk, now):
            self._scheduler.started(request_id, now)
            self.bus.publish(
                FirstToken(t=now, request_id=request_id, cached_tokens=chunk.cached_tokens)
            )
        if chunk.token_ids:
            self._scheduler.emitted(request_id, len(chunk.token_ids))
            self.bus.publish(TokensEmitted(t=now, request_id=request_id, n=len(chunk.token_ids)))

    def _leave(self, running: _Running, task: asyncio.Task[None]) -> None:
        stream, last, failure = running.stream, running.last, running.failure
        if task.cancelled() and last.finish_reason in (None, "error"):
            last = Chunk(finish_reason=running.ending)
            if running.ending == "timeout":
                failure = self._timeout_error()
        elif failure is not None:
            last = Chunk(finish_reason="error")
        del self._running[stream.request.id]
        complete = last.finish_reason in ("stop", "length")
        self._scheduler.finish(stream.request.id, self.clock.now(), complete)
        self._tell.ended(stream, last, failure)
        self._pump()

    def _cancel(self, request_id: str) -> None:
        running = self._running.get(request_id)
        if running is not None:
            running.task.cancel()
        elif (stream := self._queued.get(request_id)) is not None:
            self._end_queued(stream, "abort", None)
            self._pump()

    def _expire(self, knobs: Knobs, now: float) -> None:
        expired = self._scheduler.expire(knobs, now)
        for request in expired.queued_too_long:
            message = f"no place came free within {knobs.queue_timeout_s:g} s (queue_timeout_s)"
            retry = self._scheduler.free_per_s(now)
            self._refuse_queued(
                self._queued[request.id],
                Rejected("queue_timeout", 1 / retry if retry else None, message),
            )
        for request in expired.lived_too_long:
            running = self._running.get(request.id)
            if running is None:
                self._end_queued(self._queued[request.id], "timeout", self._timeout_error())
            elif running.ending != "timeout":
                running.ending = "timeout"
                running.task.cancel()

    def _set_alarm(self, knobs: Knobs) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._scheduler.deadline(knobs)
        if deadline is not None:
            # never in the past: one that is being cancelled may take a step to go
            when = max(deadline, self.clock.now() + 0.001)
            self._timer = asyncio.get_running_loop().call_at(when, self._pump)

    def _refuse_queued(self, stream: Stream, rejected: Rejected) -> None:
        self._queued.pop(stream.request.id)
        self._scheduler.drop(stream.request.id)
        self._tell.refused(stream.request, rejected)
        stream.end(Chunk(finish_reason="timeout"), self.clock.now(), Refused(rejected))

    def _end_queued(self, stream: Stream, reason: FinishReason, failure: Exception | None) -> None:
        self._queued.pop(stream.request.id)
        self._scheduler.drop(stream.request.id)
        self._tell.ended(stream, Chunk(finish_reason=reason), failure)

    def _timeout_error(self) -> RequestTimeout:
        limit = self.board.current.request_timeout_s
        return RequestTimeout(f"the request was not done within {limit:g} s (request_timeout_s)")

    async def _adopt_start_knobs(self) -> None:
        before = self.board.current
        applied = await self.engine.apply(before)
        changed = differences(before, applied.values)
        self.board.update({name: after for name, (_, after) in changed.items()})
        self._tell.changed(replace(applied, changed=changed), "start")

    def _revive(self) -> None:
        """The engine died: what waits goes on waiting while it is started anew."""
        if self._reviving is None and not self._stopping:
            self.ready = self._failed = False
            self._reviving = asyncio.get_running_loop().create_task(self._restart())

    async def _restart(self) -> None:
        error: Exception | None = None
        for attempt in range(_RESTARTS):
            await asyncio.sleep(0.2 * attempt)
            try:
                await self.engine.stop()
                await self.start()
            except EngineError as failed:
                error = failed
                continue
            break
        self._reviving = None
        self._failed = not self.ready
        if self._failed:
            for stream in list(self._queued.values()):
                self._end_queued(stream, "error", error)
        with contextlib.suppress(RuntimeError):  # the loop may be closing
            self._pump()
