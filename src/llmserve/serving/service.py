"""The async shell around the scheduler and the engine; the only publisher of request events.

It awaits and decides nothing: who goes next is the scheduler's word, which tokens now the
engine's. `running.py` holds who is in the engine, `engines/supervisor.py` the engine's life,
`knob_updates.py` the changes of knobs, `waiting.py` who waits; here is what happens when.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping

import msgspec

from llmserve.core.clock import Clock
from llmserve.core.events import EventBus, WaitReasonChanged
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
from llmserve.serving.waiting import WaitingRequests


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
        self.keeper = EngineSupervisor(engine, self)
        self._scheduler = Scheduler(max_model_len=0, terms=self.terms)
        self._tell = Publisher(bus, clock)
        self._tuner = KnobUpdates(engine, board, self._scheduler, clock, self._tell)
        self._runner = RunningRequests(
            engine, self._scheduler, bus, clock, self._tell,
            died=self.keeper.died, left=self._pump,
        )  # fmt: skip
        self._lobby = WaitingRequests(self._scheduler, clock, self._tell)
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self.at_the_gate = 0
        """Who waits in `when_up`."""
        self._ids = itertools.count(1)

    @property
    def ready(self) -> bool:
        """The engine takes requests; while it does not, they wait."""
        return self.keeper.ready

    @property
    def pids(self) -> tuple[int, ...]:
        """The engine's processes, as far as it holds any now."""
        return self.engine.info.pids if self.keeper.holds else ()

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-{next(self._ids)}"

    async def start(self) -> None:
        """Start the engine and hand it the knobs; EngineError where it cannot start."""
        await self.keeper.start()

    async def stop(self) -> None:
        """End every request (waiting ones are refused), then the engine."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        self._lobby.refuse_all(Rejected("stopping", message="the server is stopping"))
        await self._runner.drain(0, EngineError("the server was stopped"))
        await self.keeper.close()

    async def check_form(self, sampling: SamplingParams) -> None:
        """ParamError for a form that no reply can be held to: ask before `submit`, once for all
        the replies to it."""
        form = sampling.structured_outputs
        if form is not None and isinstance(self.engine, ChecksSchemas):
            await self.engine.check_form(form)

    def submit(self, request: Request) -> Stream:
        """Take the request in; Refused where the door says no. Its tokens come by the Stream."""
        terms = self.terms.get(request.tenant)
        if terms is not None and request.ttft_slo_ms is None:
            request = msgspec.structs.replace(request, ttft_slo_ms=terms.ttft_slo_ms)
        self._admit(request, self._scheduler.offer)
        stream = Stream(request, lambda: self._cancel(request.id))
        self._lobby.enter(stream)
        self._tell.submitted(request)
        self.keeper.wanted()
        self._pump()
        return stream

    def admit_kept(self, request: Request) -> None:
        """Refused where its tenant's rate of requests says no to one whose reply is here."""
        self._admit(request, self._scheduler.offer_kept)

    async def set_knobs(
        self, changes: Mapping[str, object], source: str = "code", *, evict: object = False
    ) -> Applied:
        """Change knobs, all or none (KnobError); return once the engine has adopted them.

        evict: what runs above a lowered `max_num_seqs` makes room at once, where the engine can.
        """
        applied = await self._tuner.change(changes, source, up=self.ready, evict=evict)
        self._pump()
        return applied

    @property
    def user_policy(self) -> UserPolicy | None:
        """The user's function, with its times; None where there is none or it was removed."""
        return self._scheduler.user_policy

    @property
    def policy_error(self) -> PolicyError | None:
        """Why the last policy of the user's own was removed."""
        return self._tuner.policy_error

    @property
    def ledger(self) -> Ledger:
        return self._scheduler.ledger

    def weight(self, tenant: str) -> float:
        """Its share under fair_share."""
        return self._scheduler.weight(tenant)

    async def use_policy(self, function: Choice) -> Applied:
        """Let a function that was tried out choose from now on; whoever waits stays in line."""
        policy = self._tuner.use(function)
        return await self.set_knobs({"policy": "custom"}, source=f"policy {policy.name}")

    def agree(self, terms: Mapping[str, Terms]) -> None:
        """Other terms with tenants from now on, for who waits already too."""
        self.terms = terms
        self._scheduler.agree(terms, self.clock.now())
        self._pump()

    def find(self, request_id: str) -> Request | None:
        """A request that waits or runs."""
        return self._lobby.find(request_id) or self._runner.find(request_id)

    async def when_up(self) -> None:
        """For requests that only the running engine can read: wait as in the line for it.

        EngineError where it does not come, Refused after `queue_timeout_s`, or where so many wait
        already that one more would be refused.
        """
        if self.ready:
            return
        knobs, limit = self.board.current, self.board.current.queue_timeout_s
        waiting = self._scheduler.waiting + self.at_the_gate
        if knobs.queue_mode == "reject":
            raise Refused(Rejected("no_place", message="the engine takes no requests now"))
        if waiting >= knobs.queue_max:
            raise Refused(Rejected("queue_full", message=f"{waiting} requests wait for the engine"))
        self.keeper.wanted()
        self.at_the_gate += 1
        try:
            async with asyncio.timeout(limit):
                await self.keeper.up()
        except TimeoutError:
            told = f"the engine did not come up within {limit:g} s (queue_timeout_s)"
            raise Refused(Rejected("queue_timeout", message=told)) from None
        finally:
            self.at_the_gate -= 1

    async def device_bytes(self) -> int | None:
        """What the engine holds on GPUs by its own count; None where it has none."""
        if not self.ready or not isinstance(self.engine, Counts):
            return None
        return await self.engine.device_bytes()

    async def drain(self, seconds: float, told: Exception) -> int:
        return await self._runner.drain(seconds, told)

    async def came_up(self) -> None:
        await self._tuner.adopt()
        info = self.engine.info
        self._scheduler.max_model_len = info.max_model_len
        self._scheduler.kv_capacity_tokens = info.kv_capacity_tokens

    def changed(self) -> None:
        self._pump()

    def gave_up(self, error: EngineError) -> None:
        self._lobby.end_all(error)

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
        if self.ready and self.engine.dead:
            self.keeper.died()
        while self.ready and (request := self._scheduler.next(knobs, now)) is not None:
            self._runner.run(self._lobby.leave(request.id))
        self._tuner.drop_broken_policy()
        for request_id, reason in self._scheduler.holds():
            self.bus.publish(WaitReasonChanged(t=now, request_id=request_id, reason=reason))
        self._tell.fairness(self._scheduler.fairness)
        self._set_alarm(self.board.current)

    def _cancel(self, request_id: str) -> None:
        if not self._runner.cancel(request_id) and self._lobby.find(request_id) is not None:
            self._lobby.end(request_id, "abort", None)
            self._pump()

    def _expire(self, knobs: Knobs, now: float) -> None:
        expired = self._scheduler.expire(knobs, now)
        for request in expired.queued_too_long:
            message = f"no place came free within {knobs.queue_timeout_s:g} s (queue_timeout_s)"
            retry = self._scheduler.free_per_s(now)
            rejected = Rejected("queue_timeout", 1 / retry if retry else None, message)
            self._lobby.refuse(request.id, rejected)
        limit = knobs.request_timeout_s
        for request in expired.lived_too_long:
            told = f"the request was not done within {limit:g} s (request_timeout_s)"
            late = RequestTimeout(told)
            if not self._runner.cancel(request.id, "timeout", late):
                self._lobby.end(request.id, "timeout", late)

    def _set_alarm(self, knobs: Knobs) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._scheduler.deadline(knobs)
        if deadline is not None:
            # never in the past: one that is being cancelled may take a step to go
            when = max(deadline, self.clock.now() + 0.001)
            self._timer = asyncio.get_running_loop().call_at(when, self._pump)
