"""The serving front of a simulation: what `Service` does between clients and engine, as callbacks.

It decides nothing either. Every rule is the `Scheduler`'s, with its policies and admission; here is
what happens when, in the turns that the tasks of a live service would take. So a run here and one
through the service itself have the same events at the same times, and tests compare them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import msgspec

from llmserve.core.agenda import Agenda, AgendaTimer
from llmserve.core.knobs import SPECS, Applied, KnobBoard, KnobError, Knobs, differences
from llmserve.core.tenants import Terms
from llmserve.core.types import FinishReason, Request, Usage
from llmserve.engines.batching.sequence import Plan
from llmserve.engines.simulator.setup import SimulatorSetup
from llmserve.engines.simulator.stepped import SteppedSimulator
from llmserve.engines.simulator.stepped_reply import SteppedReply
from llmserve.scheduling.admission import Rejected
from llmserve.scheduling.entry import Entry
from llmserve.scheduling.scheduler import Scheduler
from llmserve.scheduling.user_policy import Choice, PolicyError, UserPolicy
from llmserve.serving.publisher import Publisher
from llmserve.serving.waiting import expired_in_life, expired_in_queue

_RETRY_S = 0.001
"""The next alarm is never sooner: a request that is being cancelled may take a moment to go."""


@dataclass(eq=False, slots=True)
class Simulated:
    """A request in the simulation, from its submission on; in its `Entry` as the handle."""

    request: Request
    number: int
    """How many were sent before it."""
    client: Callable[[Simulated], object] | None
    """Called in the turn after its end."""
    ended_s: float = 0.0
    dispatched_s: float | None = None
    first_s: float | None = None
    cached_tokens: int = 0
    generated: int = 0
    times: list[float] | None = None
    """Of its tokens, where they are kept."""
    reply: SteppedReply | None = None
    over: bool = False
    """Its last token came, or its work was stopped: nothing more is delivered."""
    stopped: bool = False
    reason: FinishReason | str | None = None
    error: str | None = None

    @property
    def preemptions(self) -> int:
        return 0 if self.reply is None else self.reply.seq.preemptions

    @property
    def served(self) -> bool:
        return self.reason in ("stop", "length")


class Ends(Protocol):
    """Takes in what became of requests, and what steps there were."""

    def rejected(self, request: Request, number: int, rejected: Rejected, now: float) -> None:
        """Admission control rejected it."""
        ...

    def ended(self, simulated: Simulated) -> None:
        """It ended, whichever way."""
        ...

    def gaps(self, times: list[float], gaps_s: list[float], requests: int) -> None:
        """At each of these times so many requests had a token so long after the one before."""
        ...

    def stepped(self, plan: Plan, steps: int, kv_used_blocks: int) -> None: ...


class SimulatedFront:
    """`submit`, `cancel`, `set_knobs`. Satisfies `StepListener`."""

    def __init__(
        self,
        agenda: Agenda,
        setup: SimulatorSetup,
        board: KnobBoard,
        ends: Ends,
        *,
        terms: Mapping[str, Terms] | None = None,
        publisher: Publisher | None = None,
        sink: Callable[..., None] | None = None,
        keep_times: bool = False,
        read: bool = True,
    ) -> None:
        """With a publisher and a sink all events are published; without them the engine counts
        what it can count. Not `read` where nobody reads replies."""
        self.policy_error: PolicyError | None = None
        self.sent = 0
        self._agenda, self.board, self._ends = agenda, board, ends
        self._terms: Mapping[str, Terms] = terms or {}
        self._publisher = publisher
        self._keep_times = keep_times
        counted = publisher is None and not keep_times
        self.engine = SteppedSimulator(setup, agenda, self, sink=sink, lockstep=counted, read=read)
        info = self.engine.info
        self.scheduler = Scheduler(0, self._terms)
        self._alarm = AgendaTimer(self._pump, ())
        self._changes: deque[Callable[[], None]] = deque()
        self._changing = False
        self.engine.start()
        self.engine.apply(board.current, self._started)
        self.scheduler.max_model_len = info.max_model_len
        self.scheduler.kv_capacity_tokens = info.kv_capacity_tokens

    def use_policy(self, function: Choice) -> None:
        """Let a function that was tried out choose from now on."""
        policy = UserPolicy(function, self._agenda.now)
        self.scheduler.use(policy, self._agenda.now())
        self.set_knobs(("policy",), Knobs(policy="custom"), f"policy {policy.name}")

    def submit(
        self, request: Request, client: Callable[[Simulated], object] | None = None
    ) -> Simulated | None:
        """Queue a request; None where admission control rejects it."""
        terms = self._terms.get(request.tenant)
        if terms is not None and request.ttft_slo_ms is None:
            request = msgspec.structs.replace(request, ttft_slo_ms=terms.ttft_slo_ms)
        now, number = self._agenda.now(), self.sent
        self.sent += 1
        verdict = self.scheduler.offer(request, self.board.current, now)
        if isinstance(verdict, Rejected):
            if self._publisher is not None:
                self._publisher.rejected(request, verdict)
            self._ends.rejected(request, number, verdict, now)
            return None
        simulated = Simulated(request, number, client, times=[] if self._keep_times else None)
        self._entry(request.id).handle = simulated
        if self._publisher is not None:
            self._publisher.submitted(request)
        self._pump()
        return simulated

    def cancel(self, request_id: str) -> None:
        """Its client leaves: nothing where it has ended."""
        entry = self.scheduler.find(request_id)
        if entry is None or self._stop(entry, "abort", None):
            return
        self._end_waiting(entry, "abort", None)
        self._pump()

    def set_knobs(self, names: Collection[str], requested: Knobs, source: str) -> None:
        """Take these knobs from `requested`, one change after the other. KnobError where there is
        no function for `policy=custom`."""
        change = partial(self._change, names, requested, source)
        if self._changing:
            self._changes.append(change)
        else:
            self._changing = True
            change()

    def token(
        self, request_id: str, cached_tokens: int, gap_s: float | None, end: FinishReason | None
    ) -> None:
        now, simulated = self._agenda.now(), self._simulated(request_id)
        if simulated.first_s is None:
            simulated.first_s, simulated.cached_tokens = now, cached_tokens
            self.scheduler.started(request_id, now)
            if self._publisher is not None:
                self._publisher.first_token(request_id, now, cached_tokens)
        self.scheduler.emitted(request_id, 1)
        if self._publisher is not None:
            self._publisher.emitted(request_id, now, 1)
        if simulated.times is not None:
            simulated.times.append(now)
        if gap_s is not None:
            self._ends.gaps([now], [gap_s], 1)
        if end is not None:
            self._over(simulated, end)

    def together(
        self, by_tenant: Mapping[str, int], times: list[float], gaps_s: list[float]
    ) -> None:
        requests = 0
        for tenant, count in by_tenant.items():
            self.scheduler.served(tenant, count * len(times))
            requests += count
        self._ends.gaps(times, gaps_s, requests)

    def last(self, request_id: str, end: FinishReason) -> None:
        self._over(self._simulated(request_id), end)

    def stepped(self, plan: Plan, steps: int, kv_used_blocks: int) -> None:
        if self.scheduler.active:  # else all that were in it have left meanwhile
            self._ends.stepped(plan, steps, kv_used_blocks)

    def _started(self, applied: Applied) -> None:
        before = self.board.current
        changed = differences(before, applied.values)
        self.board.update(changed, applied.values)
        if self._publisher is not None:
            self._publisher.knobs_changed(replace(applied, changed=changed), "start")

    def _change(self, names: Collection[str], requested: Knobs, source: str) -> None:
        before, began = self.board.current, self._agenda.now()
        requested = before.taking(names, requested)
        if requested.policy == "custom" and self.scheduler.user_policy is None:
            raise KnobError("policy", "give a function of your own with policy=")
        applied = Applied(values=requested, changed=differences(before, requested))
        then = partial(self._changed, before, began, source)
        if any(SPECS[name].layer == "engine" for name in applied.changed):
            self.engine.apply(requested, then)
        else:
            then(applied)

    def _changed(self, before: Knobs, began: float, source: str, part: Applied) -> None:
        changed = differences(before, part.values)
        self.board.update(changed, part.values)
        if self._publisher is not None:
            ms = (self._agenda.now() - began) * 1e3
            self._publisher.knobs_changed(replace(part, changed=changed, ms=ms), source)
        if self._changes:
            self._agenda.soon(self._changes.popleft())
        else:
            self._changing = False
        self._pump()

    def _pump(self) -> None:
        """Expire what has waited too long, dispatch what may go, and set the next alarm."""
        now, knobs, scheduler = self._agenda.now(), self.board.current, self.scheduler
        due = scheduler.deadline(knobs)
        if due is not None and now >= due:
            self._expire(knobs, now)
        while (entry := scheduler.next(knobs, now)) is not None:
            self._dispatch(entry, now)
        if (broken := scheduler.take_broken()) is not None:
            self.policy_error = broken
            self._agenda.stopped = True
        changed = scheduler.take_wait_reasons()
        if self._publisher is not None:
            self._publisher.wait_reasons(changed, now)
            self._publisher.fairness(scheduler.fairness)
        due = scheduler.deadline(knobs)
        if due is None:
            self._alarm.cancel()
        else:
            self._agenda.reset(self._alarm, max(due, now + _RETRY_S))

    def _expire(self, knobs: Knobs, now: float) -> None:
        expired = self.scheduler.expire(knobs, now)
        for entry in expired.queued_too_long:
            rejected = expired_in_queue(knobs, self.scheduler.free_per_s(now))
            if self._publisher is not None:
                self._publisher.rejected(entry.request, rejected)
            self._close(entry.handle, rejected.reason, None)
        for entry in expired.lived_too_long:
            late = expired_in_life(knobs)
            if not self._stop(entry, "timeout", late):
                self._end_waiting(entry, "timeout", late)

    def _dispatch(self, entry: Entry, now: float) -> None:
        entry.handle.dispatched_s = now
        if self._publisher is not None:
            self._publisher.dispatched(entry.id, now)
        self._agenda.soon(self._enter, entry.handle)

    def _enter(self, simulated: Simulated) -> None:
        if simulated.stopped:  # before it came so far
            self._agenda.soon(self._leave, simulated)
        else:
            simulated.reply = self.engine.add(simulated.request)

    def _over(self, simulated: Simulated, reason: FinishReason) -> None:
        simulated.over, simulated.reason = True, reason
        self._agenda.after(2, self._leave, simulated)

    def _stop(self, entry: Entry, ending: FinishReason, error: str | None) -> bool:
        """Stop the work on a request, once; False where it is not in the engine."""
        if entry.status == "waiting" or entry.status == "ended":
            return False
        simulated: Simulated = entry.handle
        if not (simulated.stopped or simulated.over):
            simulated.stopped, simulated.reason, simulated.error = True, ending, error
            if simulated.reply is not None:
                simulated.generated = self.engine.generated(simulated.reply)
                self.engine.silence(simulated.reply)
                self._agenda.soon(self._withdraw, simulated)
        return True

    def _withdraw(self, simulated: Simulated) -> None:
        assert simulated.reply is not None, "it was in the engine"
        self.engine.remove(simulated.reply)
        self._agenda.soon(self._leave, simulated)

    def _leave(self, simulated: Simulated) -> None:
        request, now = simulated.request, self._agenda.now()
        if not simulated.stopped:
            assert simulated.reply is not None, "it came to its own end"
            simulated.generated = simulated.reply.seq.generated
        self.scheduler.counted(request.id, simulated.generated)
        self.scheduler.finish(request.id, now, simulated.served)
        self._close(simulated, simulated.reason, simulated.error)
        self._publish_end(simulated)
        self._pump()

    def _end_waiting(self, entry: Entry, reason: FinishReason, error: str | None) -> None:
        self.scheduler.drop(entry.id)
        self._close(entry.handle, reason, error)
        self._publish_end(entry.handle)

    def _close(self, simulated: Simulated, reason: str | None, error: str | None) -> None:
        simulated.reason, simulated.error = reason, error
        simulated.ended_s = self._agenda.now()
        if simulated.client is not None:
            self._agenda.soon(simulated.client, simulated)
        self._ends.ended(simulated)

    def _publish_end(self, simulated: Simulated) -> None:
        if self._publisher is None:
            return
        request, cached = simulated.request, simulated.cached_tokens
        usage = Usage(len(request.prompt_ids), simulated.generated, cached)
        reason: FinishReason = simulated.reason  # type: ignore[assignment]  # no rejection's here
        self._publisher.finished(request.id, reason, usage, simulated.error)

    def _entry(self, request_id: str) -> Entry:
        entry = self.scheduler.find(request_id)
        assert entry is not None, f"{request_id} is not here"
        return entry

    def _simulated(self, request_id: str) -> Simulated:
        simulated: Simulated = self._entry(request_id).handle
        return simulated
