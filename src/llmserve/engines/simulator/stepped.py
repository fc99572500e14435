"""The simulator as a state machine on an agenda: what the engine does, without tasks and tokens.

It takes the steps of `SimulatorEngine`, in the same turns and at the same times. In `lockstep` the
decoding sequences are counted as a group, and steps that are alike are taken in one go as far as
nothing else is due. Replies are not written: a token is drawn where a cache or a stop asks for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import sub

from llmserve.core.agenda import Agenda, AgendaTimer
from llmserve.core.knobs import Applied, Clamp, Knobs, differences
from llmserve.core.types import Request
from llmserve.engines.base import StepSink
from llmserve.engines.batching import sequence
from llmserve.engines.batching.lockstep import LockstepPlanner
from llmserve.engines.batching.sequence import Plan, PlannedRow
from llmserve.engines.batching.step_planner import StepPlanner
from llmserve.engines.limits import clamp
from llmserve.engines.simulator.engine import MAX_LATE_S, SETTLE_S, SETTLE_TURNS
from llmserve.engines.simulator.reply import shortest_reply
from llmserve.engines.simulator.setup import SimulatorSetup, StepTimes, front_delays, with_prefill
from llmserve.engines.simulator.stepped_reply import StepListener, SteppedReply, SteppedTokens
from llmserve.engines.simulator.vocabulary import voice, words

_MOST_ALIKE = 1_000_000
_SHORTEST_S = 2 * SETTLE_S
"""A shorter step ends before the next moment is over, so it is taken by itself."""


@dataclass(slots=True)
class _KnobChange:
    values: Knobs
    clamps: tuple[Clamp, ...]
    then: Callable[[Applied], object]
    asked_at: float


class SteppedSimulator:
    """Tokens go to the listener, and steps to the sink where there is one."""

    def __init__(
        self,
        setup: SimulatorSetup,
        agenda: Agenda,
        listener: StepListener,
        *,
        sink: StepSink | None = None,
        lockstep: bool = True,
        read: bool = True,
    ) -> None:
        """Not `read` where no prompt holds words of a reply, and no reply ends at a stop."""
        assert not (lockstep and sink), "a group has no rows to record"
        self._agenda, self._listener, self._sink = agenda, listener, sink
        self._read = read
        self.info = setup.info()
        self._times = StepTimes(setup)
        self._planner, self._lockstep = _planners(setup, self._fill, lockstep)
        self._knobs, _ = clamp(Knobs(), self.info.ceilings)
        self._replies: dict[str, SteppedReply] = {}
        self._changes: list[_KnobChange] = []
        self._in_step = self._idle = False
        self._start = self._duration = self._typical_s = 0.0
        self._reads = 0
        self._end: float | None = None
        self._heard_at = 0.0  # when the last step's tokens were delivered
        self._plan: Plan | None = None
        self.steps = self.delivered_steps = 0
        self._to_engine, self._to_clients = front_delays(setup)
        self._is_late = self._to_clients.typical_s > 0
        self._late: deque[SteppedTokens] = deque()
        self._touched = False
        """Requests came or left since the step was planned that is under way."""
        self._timer = AgendaTimer(agenda.soon, ())
        self._window: AgendaTimer | None = None

    def start(self) -> None:
        self._agenda.soon(self._next)

    def apply(self, knobs: Knobs, then: Callable[[Applied], object]) -> None:
        """Adopt knobs before the next step, and say so in the turn after; at once where none is
        under way, and then within this call."""
        values, clamps = clamp(knobs, self.info.ceilings)
        change = _KnobChange(values, clamps, then, self._agenda.now())
        self._changes.append(change)
        if not self._in_step:
            self._adopt(now=change)

    def add(self, request: Request) -> SteppedReply:
        """ParamError where no reply can have its form."""
        said = shortest_reply(request.sampling.structured_outputs)
        if not self._to_engine.typical_s:
            reply = SteppedReply(self._planner.add(request, self._agenda.now()), self._read, said)
            self._enter(reply)
            return reply
        reply = SteppedReply(sequence.Sequence(request, 0.0, 0), self._read, said, here=False)
        when = self._agenda.now() + self._to_engine.draw()
        self._agenda.at(when, self._agenda.soon, self._arrive, reply)
        return reply

    def _arrive(self, reply: SteppedReply) -> None:
        if not reply.deaf:
            reply.seq = self._planner.add(reply.seq.request, self._agenda.now())
            self._enter(reply)

    def _enter(self, reply: SteppedReply) -> None:
        self._replies[reply.seq.id] = reply
        reply.here = self._touched = True
        reply.foresee()
        self._wake()

    def generated(self, reply: SteppedReply) -> int:
        """How many tokens were delivered of it."""
        group = self._lockstep
        drawn = reply.seq.generated if group is None else group.generated(reply.seq)
        return drawn - sum(late.holds(reply) for late in self._late)

    def silence(self, reply: SteppedReply) -> None:
        """Deliver no more of a request; `remove` follows, a turn later."""
        reply.deaf = True
        for late in self._late:
            late.mute(reply.seq.id)
        if self._lockstep is not None:
            self._lockstep.mute(reply.seq.id)

    def remove(self, reply: SteppedReply) -> None:
        """Take a request out, if it has not ended by itself."""
        self._touched = True
        if reply.here:
            self._forget(reply)

    def reply_of(self, request: Request, tokens: int) -> list[int]:
        """The first tokens of what a request is answered."""
        return words(voice(request.prompt_ids, request.sampling.seed), 0, tokens)

    def _next(self) -> None:
        agenda = self._agenda
        now, end = agenda.now(), self._end
        self._start = start = now if end is None else max(end, now - MAX_LATE_S)
        if now - start < SETTLE_S:
            self._sleep(start + SETTLE_S, self._settled)
        else:
            agenda.after(SETTLE_TURNS, self._settled)

    def _sleep(self, until: float, then: Callable[[], None]) -> None:
        self._timer.args = (then,)
        self._agenda.reset(self._timer, until)

    def _settled(self) -> None:
        self._adopt()
        self._planner.take_moves()
        plan = self._planner.plan(self._knobs, self._agenda.now())
        if plan is None:
            self._end = None
            self._rest()
            return
        self._in_step, self._plan = True, plan
        self._touched, group = False, self._lockstep
        reads = 0 if group is None else group.reads
        self._typical_s, self._reads = self._times.fixed(plan.rows, plan.together, reads)
        seconds = self._typical_s + self._times.kv_s * self._reads
        self._duration = self._times.draw(seconds, with_prefill(plan.rows))
        if group is not None:
            for seq in group.loosened:
                self._replies[seq.id].last_s = self._heard_at
            group.loosened.clear()
            if not (plan.rows or self._is_late):
                self._take_alike(group, plan)
        self._end = self._start + self._duration
        self._sleep(self._end, self._over)

    def _take_alike(self, group: LockstepPlanner, plan: Plan) -> None:
        """Take steps that are alike, as long as nothing else is due before the next is planned, or
        before the tokens of the last are delivered."""
        agenda, start, duration = self._agenda, self._start, self._duration
        horizon, end, heard, late = agenda.horizon, start + duration, self._heard_at, self._is_late
        if not agenda.quiet or end + SETTLE_S >= horizon:
            return
        most, delay = group.alike(plan, _MOST_ALIKE), self._to_clients
        draw, varies, times = self._times.draw, self._times.varies, list[float]()
        fixed, kv_s, reads, grown = self._typical_s, self._times.kv_s, self._reads, plan.together
        seconds = fixed + kv_s * reads
        for _ in range(most):
            if end + SETTLE_S >= horizon or duration <= _SHORTEST_S:
                break
            when = max(heard, end + delay.draw()) if late else end
            if late and when >= horizon:
                delay.put_back()
                break
            if kv_s:
                seconds = fixed + kv_s * (reads + grown)
            following = draw(seconds, False) if varies else seconds
            if late and end + following <= when + _SHORTEST_S:  # it ends before they are delivered
                delay.put_back()
                if varies:
                    self._times.put_back()
                break
            times.append(when)
            reads += grown
            start, duration, heard = end, following, when
            end = start + duration
        if not times:
            return
        gaps = list(map(sub, times, (self._heard_at, *times)))
        self._listener.together(group.by_tenant, times, gaps)
        group.skip(len(times))
        self.steps += len(times)
        self.delivered_steps += len(times)
        self._listener.stepped(plan, len(times), group.kv_used_before)
        self._start, self._duration, self._reads = start, duration, reads
        self._heard_at = heard
        agenda.jump(max(heard, start + SETTLE_S))

    def _over(self) -> None:
        self._in_step = False
        plan = self._plan
        assert plan is not None, "a step was under way"
        self._finish(plan)
        self._next()

    def _finish(self, plan: Plan) -> None:
        """End what is done, and then deliver: at once, or when that is due."""
        planner, group = self._planner, self._lockstep
        replies = self._here(row for row in plan.rows if row.samples)
        when = self._agenda.now()
        if self._is_late:
            when = max(self._heard_at, when + self._to_clients.draw())
        done = SteppedTokens(when, plan)
        if group is not None and plan.together:
            done.gap_s, done.by_tenant = when - self._heard_at, group.by_tenant
            if self._is_late:
                done.by_tenant, done.members = dict(group.by_tenant), group.heard()
        planner.commit(plan, UNDRAWN)
        if group is not None and plan.together:
            if not self._is_late:
                self._listener.together(group.by_tenant, [when], [done.gap_s])
            done.lasts = [self._replies[seq.id] for seq in group.take_full()]
        self._heard_at = when
        done.alone = self._here(row for row in plan.rows if not row.samples and row.seq.full)
        for reply in replies:
            gap = None if reply.last_s is None else when - reply.last_s
            reply.last_s, seq = when, reply.seq
            cached = (seq.cached or 0) if seq.generated == 1 else 0
            done.tokens.append((reply, cached, gap, reply.reason))
        for reply in (*done.lasts, *replies, *done.alone):
            if reply.seq.full:
                self._forget(reply)
        if self._sink is not None:
            done.record = planner.record(plan, self.steps, self._start, self._duration)
        done.kv_used_blocks = planner.kv_used_blocks
        self.steps += 1
        if self._is_late:
            self._late.append(done)
            self._agenda.soon(self._set_delivery, done)
        else:
            self._deliver(done)

    def _set_delivery(self, done: SteppedTokens) -> None:
        self._agenda.at(done.when, self._agenda.soon, self._deliver_late)

    def _deliver_late(self) -> None:
        done = self._late.popleft()
        if done.plan.together:
            self._listener.together(done.by_tenant, [done.when], [done.gap_s])
        self._deliver(done)
        group, plan = self._lockstep, self._plan
        ready = self._in_step and not (self._late or self._touched or self._changes)
        if group is None or plan is None or plan.rows or not ready or not self._agenda.quiet:
            return
        self._timer.cancel()
        self._take_alike(group, plan)
        self._end = self._start + self._duration
        self._sleep(self._end, self._over)

    def _deliver(self, done: SteppedTokens) -> None:
        listener = self._listener
        if self._sink is not None and done.record is not None:
            self._sink(done.record)
        listener.stepped(done.plan, 1, done.kv_used_blocks)
        self.delivered_steps += 1
        for reply in done.lasts:
            if not reply.deaf and (reason := reply.reason) is not None:
                listener.last(reply.seq.id, reason)
        for reply, cached, gap, end in done.tokens:
            if not reply.deaf:
                listener.token(reply.seq.id, cached, gap, end)
        for reply in done.alone:
            if not reply.deaf:
                listener.last(reply.seq.id, "length")

    def _here(self, rows: Iterable[PlannedRow]) -> list[SteppedReply]:
        """Replies of those rows whose requests have not left meanwhile."""
        return [
            reply
            for row in rows
            if (reply := self._replies.get(row.seq.id)) is not None and reply.seq is row.seq
        ]

    def _forget(self, reply: SteppedReply) -> None:
        """The planner first: it may ask for the reply's tokens."""
        self._planner.remove(reply.seq.id)
        del self._replies[reply.seq.id]
        reply.here = False

    def _fill(self, seq: sequence.Sequence) -> None:
        reply = self._replies.get(seq.id)
        if reply is not None:
            reply.fill()

    def _rest(self) -> None:
        """Wait for a request, a change of knobs, or the end of a batch window."""
        self._idle = True
        when = self._planner.wake_at(self._knobs, self._agenda.now())
        if when is not None:
            self._window = AgendaTimer(self._agenda.soon, (self._wake,))
            self._agenda.soon(self._set_window, self._window, when)

    def _set_window(self, timer: AgendaTimer, when: float) -> None:
        if timer is self._window:
            self._agenda.reset(timer, when)

    def _wake(self) -> None:
        if self._idle:
            self._idle = False
            self._agenda.soon(self._awake)

    def _awake(self) -> None:
        if self._window is not None:
            self._window.cancel()
            self._window = None
        self._next()

    def _adopt(self, now: _KnobChange | None = None) -> None:
        """Take all changes; the one of this moment's `apply` is answered within it."""
        changes, self._changes = self._changes, []
        for change in changes:
            before, self._knobs = self._knobs, change.values
            applied = Applied(
                values=change.values,
                changed=differences(before, change.values),
                clamped=change.clamps,
                adopted_step=self.steps,
                ms=(self._agenda.now() - change.asked_at) * 1e3,
            )
            if change is not now:
                self._agenda.soon(change.then, applied)
        self._wake()
        if now is not None:
            now.then(applied)


class _Undrawn(dict[str, int]):
    def __missing__(self, request_id: str) -> int:
        return 0


UNDRAWN: Mapping[str, int] = _Undrawn()
"""Zeros in place of all tokens of a step."""


def _planners(
    setup: SimulatorSetup, fill: Callable[[sequence.Sequence], None], lockstep: bool
) -> tuple[StepPlanner, LockstepPlanner | None]:
    make = partial(LockstepPlanner, fill=fill) if lockstep else partial(StepPlanner, fill=fill)
    planner = make(
        kv_blocks=setup.kv_blocks,
        block_size=setup.block_size,
        max_model_len=setup.max_model_len,
        prefix_caching=setup.enable_prefix_caching,
    )
    return planner, planner if isinstance(planner, LockstepPlanner) else None
