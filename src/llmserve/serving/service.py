"""The async shell around the scheduler and the engine.

It awaits and decides nothing: which request is dispatched is the scheduler's word, which tokens are
computed the engine's. `waiting.py` has the requests that wait, `running.py` those in the engine,
`engines/supervisor.py` the engine's life, `knob_updates.py` the changes of knobs, `publisher.py`
the events; here is what happens when.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Collection, Mapping

import msgspec

from llmserve.core.clock import Clock
from llmserve.core.events import EventBus
from llmserve.core.knobs import Applied, KnobBoard, Knobs
from llmserve.core.tenants import Terms
from llmserve.core.types import Request, SamplingParams
from llmserve.engines.base import ChecksSchemas, Counts, Engine, EngineError
from llmserve.engines.supervisor import EngineSupervisor
from llmserve.scheduling.admission import Accepted, Rejected
from llmserve.scheduling.ledger import Ledger
from llmserve.scheduling.scheduler import Scheduler
from llmserve.scheduling.user_policy import Choice, PolicyError, UserPolicy
from llmserve.serving.knob_updates import KnobUpdates
from llmserve.serving.publisher import Publisher
from llmserve.serving.running import RunningRequests
from llmserve.serving.stream import Refused, RequestTimeout, Stream
from llmserve.serving.waiting import WaitingRequests, expired_in_life, expired_in_queue


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
        self.terms: Mapping[str, Terms] = terms or {}
        self.publisher = Publisher(bus, clock)
        self.supervisor = EngineSupervisor(engine, self)
        self._scheduler = Scheduler(max_model_len=0, terms=self.terms)
        self._updates = KnobUpdates(engine, board, self._scheduler, clock, self.publisher)
        self._running = RunningRequests(
            engine, self._scheduler, clock, self.publisher,
            died=self.supervisor.died, left=self._pump,
        )  # fmt: skip
        self._waiting = WaitingRequests(self._scheduler, clock, self.publisher)
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self.waiting_for_engine = 0
        """Callers in `when_up`."""
        self._start = secrets.token_hex(6)
        self.allow_special_tokens = False
        """Whether a special token that a message spells is that token, where a request does not
        say."""
        self._ids = itertools.count(1)

    @property
    def ready(self) -> bool:
        """Whether the engine takes requests; while it does not, they wait."""
        return self.supervisor.ready

    @property
    def pids(self) -> tuple[int, ...]:
        """The engine's processes, as far as it has any now."""
        return self.engine.info.pids if self.supervisor.holds else ()

    def new_id(self, prefix: str) -> str:
        """An id that no other service gives, nor this one at another start."""
        return f"{prefix}-{self._start}-{next(self._ids)}"

    async def start(self) -> None:
        """Start the engine and give it the knobs; EngineError where it cannot start."""
        await self.supervisor.start()

    async def stop(self) -> None:
        """End every request (waiting ones are rejected), then the engine."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.reject_all(Rejected("stopping", message="the server is stopping"))
        await self._running.drain(0, EngineError("the server was stopped"))
        await self.supervisor.close()

    async def check_form(self, sampling: SamplingParams) -> None:
        """ParamError for a schema that no reply can be made to satisfy: call before `submit`, once
        for all the replies to it."""
        form = sampling.structured_outputs
        if form is not None and isinstance(self.engine, ChecksSchemas):
            await self.engine.check_form(form)

    def submit(self, request: Request) -> Stream:
        """Queue the request; Refused where admission control rejects it. Its tokens come by the
        Stream."""
        terms = self.terms.get(request.tenant)
        if terms is not None and request.ttft_slo_ms is None:
            request = msgspec.structs.replace(request, ttft_slo_ms=terms.ttft_slo_ms)
        self._admit(request, self._scheduler.offer)
        stream = Stream(request, lambda: self._cancel(request.id))
        self._waiting.enter(stream)
        self.supervisor.wanted()
        self._pump()
        return stream

    def admit_kept(self, request: Request) -> None:
        """Admit a request whose reply is cached; Refused where its tenant's request rate is
        exceeded."""
        self._admit(request, self._scheduler.offer_kept)

    async def set_knobs(
        self, changes: Mapping[str, object], source: str = "code", *, evict: object = False
    ) -> Applied:
        """Change knobs, all or none (KnobError), to values as a user gave them.

        evict: what runs above a lowered `max_num_seqs` makes room at once, where the engine can.
        """
        requested = self.board.current.changed(changes)
        return await self.take_knobs(changes.keys(), requested, source, evict=evict)

    async def take_knobs(
        self, names: Collection[str], requested: Knobs, source: str, *, evict: object = False
    ) -> Applied:
        """Take these knobs from `requested`; return once the engine has adopted them."""
        applied = await self._updates.change(names, requested, source, up=self.ready, evict=evict)
        self._pump()
        return applied

    @property
    def user_policy(self) -> UserPolicy | None:
        """The user's function, with its times; None where there is none or it was removed."""
        return self._scheduler.user_policy

    @property
    def policy_error(self) -> PolicyError | None:
        """Why the last policy of the user's own was removed."""
        return self._updates.policy_error

    @property
    def ledger(self) -> Ledger:
        return self._scheduler.ledger

    def weight(self, tenant: str) -> float:
        """The tenant's share under fair_share."""
        return self._scheduler.weight(tenant)

    async def use_policy(self, function: Choice) -> Applied:
        """Let a function that was tried out choose from now on; what waits goes on waiting."""
        policy = self._updates.use(function)
        return await self.take_knobs(("policy",), Knobs(policy="custom"), f"policy {policy.name}")

    def set_terms(self, terms: Mapping[str, Terms]) -> None:
        """Replace the tenants' terms, for requests that wait already too."""
        self.terms = terms
        self._scheduler.set_terms(terms, self.clock.now())
        self._pump()

    def find(self, request_id: str) -> Request | None:
        """The entry of a request that waits or runs."""
        entry = self._scheduler.find(request_id)
        return None if entry is None else entry.request

    async def when_up(self) -> None:
        """Wait for the engine, as if queued: for requests that only the running engine can read.

        EngineError where it does not come, Refused after `queue_timeout_s`, or where so many wait
        already that one more would be rejected.
        """
        if self.ready:
            return
        knobs, limit = self.board.current, self.board.current.queue_timeout_s
        waiting = self._scheduler.waiting + self.waiting_for_engine
        if knobs.queue_mode == "reject":
            raise Refused(Rejected("no_place", message="the engine takes no requests now"))
        if waiting >= knobs.queue_max:
            raise Refused(Rejected("queue_full", message=f"{waiting} requests wait for the engine"))
        self.supervisor.wanted()
        self.waiting_for_engine += 1
        try:
            async with asyncio.timeout(limit):
                await self.supervisor.up()
        except TimeoutError:
            late = f"the engine did not come up within {limit:g} s (queue_timeout_s)"
            raise Refused(Rejected("queue_timeout", message=late)) from None
        finally:
            self.waiting_for_engine -= 1

    async def device_bytes(self) -> int | None:
        """What the engine takes on GPUs by its own count; None where it has none."""
        if not self.ready or not isinstance(self.engine, Counts):
            return None
        return await self.engine.device_bytes()

    async def drain(self, seconds: float, error: Exception) -> int:
        return await self._running.drain(seconds, error)

    async def came_up(self) -> None:
        await self._updates.adopt()
        info = self.engine.info
        self._scheduler.max_model_len = info.max_model_len
        self._scheduler.kv_capacity_tokens = info.kv_capacity_tokens

    def changed(self) -> None:
        self._pump()

    def gave_up(self, error: EngineError) -> None:
        self._waiting.end_all(error)

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
            self.publisher.rejected(request, verdict)
            raise Refused(verdict)

    def _pump(self) -> None:
        """Expire what has waited too long, dispatch what may go, and set the next alarm."""
        if self._stopping:
            return
        now, knobs = self.clock.now(), self.board.current
        self._expire(knobs, now)
        if self.ready and self.engine.dead:
            self.supervisor.died()
        while self.ready and (entry := self._scheduler.next(knobs, now)) is not None:
            self._running.run(entry)
        self._updates.drop_broken_policy()
        self.publisher.wait_reasons(self._scheduler.take_wait_reasons(), now)
        self.publisher.fairness(self._scheduler.fairness)
        self._set_alarm(self.board.current)

    def _cancel(self, request_id: str) -> None:
        if self._running.cancel(request_id):
            return
        if (entry := self._scheduler.find(request_id)) is not None:
            self._waiting.end(entry, "abort", None)
            self._pump()

    def _expire(self, knobs: Knobs, now: float) -> None:
        expired = self._scheduler.expire(knobs, now)
        for entry in expired.queued_too_long:
            rejected = expired_in_queue(knobs, self._scheduler.free_per_s(now))
            self._waiting.reject(entry, rejected)
        for entry in expired.lived_too_long:
            late = RequestTimeout(expired_in_life(knobs))
            if not self._running.cancel(entry.id, "timeout", late):
                self._waiting.end(entry, "timeout", late)

    def _set_alarm(self, knobs: Knobs) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._scheduler.deadline(knobs)
        if deadline is not None:
            # never in the past: one that is being cancelled may take a step to go
            when = max(deadline, self.clock.now() + 0.001)
            self._timer = asyncio.get_running_loop().call_at(when, self._pump)
