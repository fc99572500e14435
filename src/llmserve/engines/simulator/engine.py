"""The simulator engine: the real step planner over modelled step times, without a model.

On a VirtualClock its times are exact. In real time each step ends at an absolute deadline, so
that late wake-ups do not add up: within 3 % over any stretch of continuous work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from dataclasses import dataclass
from typing import Any

from llmserve.core.clock import Clock
from llmserve.core.knobs import Applied, Clamp, Knobs, differences
from llmserve.core.types import Chunk, Request, StepRecord, Structured
from llmserve.engines.base import Deliver, EngineError, StepSink
from llmserve.engines.batching.sequence import Plan, Sequence
from llmserve.engines.batching.step_planner import StepPlanner
from llmserve.engines.limits import clamp
from llmserve.engines.process.delivery import Delivery
from llmserve.engines.simulator.reply import SimulatedReply, shortest_reply
from llmserve.engines.simulator.setup import StepTimes, front_delays, read_setup
from llmserve.engines.simulator.vocabulary import WordTokenizer

log = logging.getLogger(__name__)

MAX_LATE_S = 0.1
"""How much lateness is made up for; more (a loop that was blocked) is lost time."""
SETTLE_S = 1e-6
SETTLE_TURNS = 8
_Chunks = list[tuple["_Delivered", Chunk]]


class SimulatorEngine:
    """Satisfies `engines.Engine`. A request's words follow from its prompt and seed alone.

    Sampling parameters that shape a distribution have no effect, for there is none: each word is
    certain (log-probability 0), and the end-of-text token never comes. A reply that must match a
    form is the shortest that does, byte by byte.
    """

    def __init__(self, *, sink: StepSink, clock: Clock, **options: Any) -> None:
        """Options by the names that `SimulatorSetup` has; TypeError for another."""
        self.tokenizer = WordTokenizer()
        self._sink, self._clock = sink, clock
        self._setup = read_setup(None, options)
        self.info = self._setup.info()
        self._ceilings = self.info.ceilings
        self._knobs, _ = clamp(Knobs(), self._ceilings)
        self._task: asyncio.Task[None] | None = None
        self._reset()

    async def start(self) -> None:
        if self._task is None:
            self._reset()
            self._task = asyncio.create_task(self._run(), name="simulator")

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._fail("the simulator was stopped")

    @property
    def dead(self) -> bool:
        return False

    async def apply(self, knobs: Knobs) -> Applied:
        asked_at = self._clock.now()
        values, clamps = clamp(knobs, self._ceilings)
        change = _Change(values, clamps, asyncio.get_running_loop().create_future())
        self._changes.append(change)
        if not self._in_step:
            self._adopt()
        before, step = await change.adopted
        return Applied(
            values=values,
            changed=differences(before, values),
            clamped=clamps,
            adopted_step=step,
            ms=(self._clock.now() - asked_at) * 1e3,
        )

    async def reset_cache(self) -> None:
        """Forget all cached prefixes that no running request holds."""
        self._planner.reset_cache()

    async def check_form(self, structured: Structured) -> None:
        await asyncio.to_thread(shortest_reply, structured)

    async def generate(self, request: Request, deliver: Deliver) -> None:
        """One chunk per token, each at the end of its step."""
        if self._task is None:
            raise EngineError("the simulator is not running")
        said = shortest_reply(request.sampling.structured_outputs)
        if self._to_engine.typical_s:
            await self._clock.sleep_until(self._clock.now() + self._to_engine.draw())
        seq = self._planner.add(request, self._clock.now())
        reply = _Delivered(seq, Delivery(deliver), said)
        self._replies[request.id] = reply
        self._wake.set()
        try:
            await reply.delivery.over
        finally:
            if self._replies.get(request.id) is reply:
                self._forget(reply)

    def _reset(self) -> None:
        self._planner = StepPlanner(
            kv_blocks=self._setup.kv_blocks,
            block_size=self._setup.block_size,
            max_model_len=self._setup.max_model_len,
            prefix_caching=self._setup.enable_prefix_caching,
        )
        self._times = StepTimes(self._setup)
        self._to_engine, self._to_clients = front_delays(self._setup)
        self._heard_at = -math.inf  # when the last step's tokens are delivered
        self._replies: dict[str, _Delivered] = {}
        self._late: dict[asyncio.Task[None], list[_Delivered]] = {}
        """Steps that are over and not delivered yet, each with the replies it has tokens for."""
        self._changes: list[_Change] = []
        self._wake = asyncio.Event()
        self._in_step = False
        self._index = 0

    async def _run(self) -> None:
        try:
            await self._loop()
        except Exception as error:
            log.exception("the simulator's loop failed")
            self._task = None
            self._fail(f"the simulator's loop failed: {error!r}")

    async def _loop(self) -> None:
        end: float | None = None  # of the step just done, as long as there is work
        while True:
            now = self._clock.now()
            start = now if end is None else max(end, now - MAX_LATE_S)
            await self._settle(start)
            self._adopt()
            self._planner.take_moves()  # there is no KV to move
            plan = self._planner.plan(self._knobs, self._clock.now())
            if plan is None:
                end = None
                await self._idle()
                continue
            duration = self._times.step(plan.rows)
            end = start + duration
            self._in_step = True
            await self._clock.sleep_until(end)
            self._in_step = False
            self._finish(plan, start, duration)

    async def _settle(self, moment: float) -> None:
        """Let everything happen that belongs to this moment, before the next step is planned.

        A reply's end frees a slot in front, which sends the next request here: it shall be in
        the very next step. Virtual time passes only when everything waits, so there a moment is
        over when its timer fires; in real time a few turns of the loop must do.
        """
        if self._clock.now() - moment < SETTLE_S:
            await self._clock.sleep_until(moment + SETTLE_S)
        else:
            for _ in range(SETTLE_TURNS):
                await asyncio.sleep(0)

    async def _idle(self) -> None:
        """Wait for a request, a change of knobs, or the end of a batch window."""
        self._wake.clear()
        when = self._planner.wake_at(self._knobs, self._clock.now())
        timer = asyncio.create_task(self._ring(when)) if when is not None else None
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()

    async def _ring(self, when: float) -> None:
        await self._clock.sleep_until(when)
        self._wake.set()

    def _adopt(self) -> None:
        for change in self._changes:
            before, self._knobs = self._knobs, change.values
            if not change.adopted.done():
                change.adopted.set_result((before, self._index))
        self._changes.clear()
        self._wake.set()

    def _finish(self, plan: Plan, start: float, duration: float) -> None:
        """Draw the step's tokens, end what is done, report the step, and then send the chunks."""
        replies = [
            reply
            for row in plan.rows
            if row.samples
            and (reply := self._replies.get(row.seq.id)) is not None
            and reply.seq is row.seq
        ]
        drawn = [(reply, reply.draw()) for reply in replies]
        self._planner.commit(plan, {reply.seq.id: token for reply, token in drawn})
        chunks = [(reply, reply.chunk(token)) for reply, token in drawn]
        for row in plan.rows:
            if not row.samples and row.seq.full:
                alone = self._replies.get(row.seq.id)
                if alone is not None and alone.seq is row.seq:
                    chunks.append((alone, alone.prompt_alone()))
        for reply, chunk in chunks:
            if chunk.finish_reason is not None:
                self._forget(reply)
        record = self._planner.record(plan, self._index, start, duration)
        self._index += 1
        if self._to_clients.typical_s:
            when = self._clock.now() + self._to_clients.draw()
            self._heard_at = max(self._heard_at, when)
            late = asyncio.create_task(self._deliver_late(self._heard_at, record, chunks))
            self._late[late] = [reply for reply, _ in chunks]
            late.add_done_callback(self._late.pop)
        else:
            self._deliver(record, chunks)

    async def _deliver_late(self, when: float, record: StepRecord, chunks: _Chunks) -> None:
        await self._clock.sleep_until(when)
        self._deliver(record, chunks)

    def _deliver(self, record: StepRecord, chunks: _Chunks) -> None:
        self._sink(record)
        for reply, chunk in chunks:
            reply.delivery.give(chunk)

    def _forget(self, reply: _Delivered) -> None:
        del self._replies[reply.seq.id]
        self._planner.remove(reply.seq.id)

    def _fail(self, message: str) -> None:
        for reply in list(self._replies.values()):
            self._forget(reply)
            reply.delivery.fail(EngineError(message))
        for late, replies in self._late.items():
            late.cancel()
            for reply in replies:
                reply.delivery.fail(EngineError(message))
        self._in_step = False
        self._adopt()


class _Delivered(SimulatedReply):
    """A reply, and where its chunks go."""

    def __init__(self, seq: Sequence, delivery: Delivery, said: list[int] | None) -> None:
        super().__init__(seq, said)
        self.delivery = delivery


@dataclass(frozen=True, slots=True)
class _Change:
    values: Knobs
    clamps: tuple[Clamp, ...]
    adopted: asyncio.Future[tuple[Knobs, int]]
    """The knobs before, and the first step planned under the new ones."""
