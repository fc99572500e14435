"""The simulator as a state machine on an agenda: what the engine does, without tasks and tokens.

It takes the steps of `SimulatorEngine`, in the same turns and at the same times. In `lockstep` the
decoding sequences are counted as a group, and steps that are alike are taken in one go as far as
nothing else is due. Replies are not written: a token is drawn where a cache or a stop asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import sub
from typing import Protocol

from llmserve.core.agenda import Agenda, AgendaTimer
from llmserve.core.knobs import Applied, Clamp, Knobs, differences
from llmserve.core.types import FinishReason, Request
from llmserve.engines.base import StepSink
from llmserve.engines.batching import sequence
from llmserve.engines.batching.lockstep import LockstepPlanner
from llmserve.engines.batching.sequence import Plan, PlannedRow
from llmserve.engines.batching.step_planner import StepPlanner
from llmserve.engines.limits import clamp
from llmserve.engines.simulator.engine import MAX_LATE_S, SETTLE_S, SETTLE_TURNS
from llmserve.engines.simulator.reply import NOTHING, ends_after, shortest_reply
from llmserve.engines.simulator.setup import SimulatorSetup, StepTimes
from llmserve.engines.simulator.vocabulary import stand_in_voice, stand_ins, voice, words

_MOST_ALIKE = 1_000_000
_SHORTEST_S = 2 * SETTLE_S
"""A shorter step ends before the next moment is over, so it is taken by itself."""


@dataclass(eq=False, slots=True)
class SteppedReply:
    """A request in the engine."""

    seq: sequence.Sequence
    read: bool
    """Somebody may read its words, if only a cache that meets them in a prompt."""
    said: list[int] | None = None
    """The text of its form, where it has one."""
    voice: int | None = None
    drawn: int = 0
    """So many tokens of the reply are written into the sequence; the others are zeros."""
    stops_at: int | None = None
    """The reply ends with "stop" at so many tokens."""
    last_s: float | None = None
    """When it last had a token by itself, or as one of a group that is no more."""
    here: bool = True
    """The engine has it."""
    deaf: bool = False
    """Nothing more is delivered of it."""

    def foresee(self) -> None:
        """Find out where it ends with "stop", if it does."""
        seq, sampling = self.seq, self.seq.request.sampling
        if not (sampling.stop or sampling.stop_token_ids or self.said is not None):
            return
        most = seq.limit - seq.prompt_tokens
        if self.said is None:
            self.voice = voice(seq.request.prompt_ids, sampling.seed)
            tokens = words(self.voice, 0, most)
        else:
            tokens = (self.said or [NOTHING])[:most]
        self.stops_at = ends_after(sampling, self.said, tokens)
        if self.stops_at is not None:
            seq.limit = seq.prompt_tokens + self.stops_at

    def fill(self) -> None:
        seq = self.seq
        generated = seq.generated
        if generated > self.drawn and self.said is not None:
            seq.tokens[seq.prompt_tokens :] = self.said[:generated] or [NOTHING]
            self.drawn = generated
        elif generated > self.drawn:
            speak, draw = (voice, words) if self.read else (stand_in_voice, stand_ins)
            if self.voice is None:
                self.voice = speak(seq.request.prompt_ids, seq.request.sampling.seed)
            seq.tokens[seq.prompt_tokens + self.drawn :] = draw(self.voice, self.drawn, generated)
            self.drawn = generated

    @property
    def reason(self) -> FinishReason | None:
        """Why it is over; None while it is not."""
        if not self.seq.full:
            return None
        return "stop" if self.stops_at == self.seq.generated else "length"


class StepListener(Protocol):
    """Who hears of tokens."""

    def token(
        self, request_id: str, cached_tokens: int, gap_s: float | None, end: FinishReason | None
    ) -> None:
        """A token of one request, so long after the one before."""
        ...

    def together(
        self, by_tenant: Mapping[str, int], times: list[float], gaps_s: list[float]
    ) -> None:
        """At each of these times so many requests of each tenant had a token, all of them so long
        after the one before."""
        ...

    def last(self, request_id: str, end: FinishReason) -> None:
        """One that `together` counted was the request's last; or it has none, for it was about its
        prompt alone."""
        ...

    def stepped(self, plan: Plan, steps: int, kv_used_blocks: int) -> None:
        """So many steps like this plan are over."""
        ...


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
        self._start = self._duration = 0.0
        self._end: float | None = None
        self._heard_at = 0.0  # when the last step's tokens were delivered
        self._plan: Plan | None = None
        self.steps = 0
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
        seq = self._planner.add(request, self._agenda.now())
        reply = self._replies[request.id] = SteppedReply(seq, self._read, said)
        reply.foresee()
        self._wake()
        return reply

    def generated(self, reply: SteppedReply) -> int:
        """How many tokens it has had."""
        group = self._lockstep
        return reply.seq.generated if group is None else group.generated(reply.seq)

    def silence(self, reply: SteppedReply) -> None:
        """Deliver no more of a request; `remove` follows, a turn later."""
        reply.deaf = True
        if self._lockstep is not None:
            self._lockstep.mute(reply.seq.id)

    def remove(self, reply: SteppedReply) -> None:
        """Take a request out, if it has not ended by itself."""
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
        seconds = self._times.cost.seconds(plan.rows, plan.together)
        self._duration = self._times.draw(seconds)
        if (group := self._lockstep) is not None:
            for seq in group.loosened:
                self._replies[seq.id].last_s = self._heard_at
            group.loosened.clear()
            if not plan.rows:
                self._take_alike(group, plan, seconds)
        self._end = self._start + self._duration
        self._sleep(self._end, self._over)

    def _take_alike(self, group: LockstepPlanner, plan: Plan, seconds: float) -> None:
        """Take steps that are alike, as long as nothing else is due before the next is planned."""
        agenda, start, duration = self._agenda, self._start, self._duration
        horizon, end = agenda.horizon, start + duration
        if not agenda.quiet or end + SETTLE_S >= horizon:
            return
        most = group.alike(plan, _MOST_ALIKE)
        draw, jitter, times = self._times.draw, self._times.jitter, list[float]()
        for _ in range(most):
            if end + SETTLE_S >= horizon or duration <= _SHORTEST_S:
                break
            times.append(end)
            start, duration = end, draw(seconds) if jitter else seconds
            end = start + duration
        if not times:
            return
        gaps = list(map(sub, times, (self._heard_at, *times)))
        self._listener.together(group.by_tenant, times, gaps)
        group.skip(len(times))
        self.steps += len(times)
        self._listener.stepped(plan, len(times), group.kv_used_before)
        self._start, self._duration, self._heard_at = start, duration, start
        agenda.jump(start + SETTLE_S)

    def _over(self) -> None:
        self._in_step = False
        plan = self._plan
        assert plan is not None, "a step was under way"
        self._finish(plan)
        self._next()

    def _finish(self, plan: Plan) -> None:
        """End what is done, report the step, and then deliver."""
        planner, group, listener = self._planner, self._lockstep, self._listener
        replies = self._here(row for row in plan.rows if row.samples)
        now = self._agenda.now()
        planner.commit(plan, UNDRAWN)
        lasts: list[SteppedReply] = []
        if group is not None and plan.together:
            listener.together(group.by_tenant, [now], [now - self._heard_at])
            lasts = [self._replies[seq.id] for seq in group.take_full()]
        self._heard_at = now
        alone = self._here(row for row in plan.rows if not row.samples and row.seq.full)
        for reply in (*lasts, *replies, *alone):
            if reply.seq.full:
                self._forget(reply)
        if self._sink is not None:
            self._sink(planner.record(plan, self.steps, self._start, self._duration))
        listener.stepped(plan, 1, planner.kv_used_blocks)
        self.steps += 1
        for reply in lasts:
            if not reply.deaf and (reason := reply.reason) is not None:
                listener.last(reply.seq.id, reason)
        for reply in replies:
            if not reply.deaf:
                seq, gap = reply.seq, None if reply.last_s is None else now - reply.last_s
                reply.last_s = now
                cached = (seq.cached or 0) if seq.generated == 1 else 0
                listener.token(seq.id, cached, gap, reply.reason)
        for reply in alone:
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
