"""The front scheduler: who is handed to the engine next. No asyncio, no clock.

Invariants (`check`): every request offered and accepted is in exactly one of waiting and active
until it is finished, dropped or expired; no cap is exceeded but by lowering it; the ledger counts
exactly what waits and runs.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

from llmserve.admission import Accepted, Load, Rejected, admit
from llmserve.core import HoldReason, Request
from llmserve.knobs import Knobs
from llmserve.ledger import Ledger, footprint
from llmserve.waiting_line import WaitingLine

_DRAIN_SAMPLES = 64


class Expired(NamedTuple):
    queued_too_long: list[Request]
    lived_too_long: list[Request]


class Scheduler:
    def __init__(self, max_model_len: int) -> None:
        self.max_model_len = max_model_len
        self._waiting: dict[str, Request] = {}  # in order of offering
        self._active: dict[str, Request] = {}
        self._offered: dict[str, float] = {}  # both of the above, in order of offering
        self._queue_since: dict[str, float] = {}
        self._ledger = Ledger()
        self._knobs = Knobs()
        self._line = WaitingLine(self._knobs, self._ledger)
        self._finishes: deque[float] = deque(maxlen=_DRAIN_SAMPLES)
        self._held: dict[str, HoldReason] = {}
        self._news: dict[str, HoldReason] = {}

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    def load(self, now: float, tenant: str = "default") -> Load:
        return Load(
            len(self._waiting),
            len(self._active),
            self._drain(now),
            self.max_model_len,
            self._ledger.account(tenant).bucket,
        )

    def offer(self, request: Request, knobs: Knobs, now: float) -> Accepted | Rejected:
        """Take the request into the waiting set, or refuse it. ValueError on a live id."""
        if request.id in self._offered:
            raise ValueError(f"request id {request.id} is already here")
        verdict = admit(request, self.load(now, request.tenant), knobs, now)
        if isinstance(verdict, Accepted):
            self._turn(knobs, now)
            self._waiting[request.id] = request
            self._offered[request.id] = self._queue_since[request.id] = now
            self._ledger.arrived(request)
            self._line.add(request, now)
        return verdict

    def next(self, knobs: Knobs, now: float) -> Request | None:
        """The request to hand to the engine now, moved to active; None when none may go."""
        self._turn(knobs, now)
        if len(self._active) >= knobs.active_cap:
            self._explain_waiting("cap")
            return None
        while (chosen := self._line.first(now)) is not None:
            limit = knobs.max_active_per_tenant
            if limit is not None and self._ledger.account(chosen.tenant).active >= limit:
                self._line.park(chosen.tenant)
                self._tell(chosen.id, "tenant_limit")
                continue
            if not self._fits(chosen, knobs):
                self._explain_waiting("token_budget")
                return None
            self._leave_queue(chosen.id)
            self._active[chosen.id] = chosen
            self._ledger.dispatched(chosen, 1.0)
            self._explain_overtaken(chosen)
            return chosen
        return None

    def emitted(self, request_id: str, tokens: int) -> None:
        """An active request was given so many tokens: its tenant's service."""
        self._ledger.emitted(self._active[request_id].tenant, tokens, 1.0)

    def finish(self, request_id: str, now: float) -> None:
        """An active request left the engine; its place is free."""
        request = self._active.pop(request_id)
        del self._offered[request_id]
        self._ledger.finished(request)
        self._line.unpark(request.tenant)
        self._finishes.append(now)

    def drop(self, request_id: str) -> bool:
        """Forget a waiting request; False where it does not wait."""
        if request_id not in self._waiting:
            return False
        self._leave_queue(request_id)
        del self._offered[request_id]
        return True

    def expire(self, knobs: Knobs, now: float) -> Expired:
        """Waiting requests past `queue_timeout_s` (dropped here), and any past
        `request_timeout_s` (waiting ones dropped here, active ones left to be finished)."""
        lived: list[Request] = []
        for request_id, since in self._offered.items():
            if now < since + knobs.request_timeout_s:
                break
            lived.append(self._waiting.get(request_id) or self._active[request_id])
        for request in lived:
            self.drop(request.id)
        queued: list[Request] = []
        for request_id, since in self._queue_since.items():
            if now < since + knobs.queue_timeout_s:
                break
            queued.append(self._waiting[request_id])
        for request in queued:
            self.drop(request.id)
        return Expired(queued, lived)

    def deadline(self, knobs: Knobs) -> float | None:
        """When `expire` will next have something to do; None while nothing is here."""
        oldest = next(iter(self._offered.values()), None)
        if oldest is None:
            return None
        queued = next(iter(self._queue_since.values()), None)
        ends = oldest + knobs.request_timeout_s
        return ends if queued is None else min(ends, queued + knobs.queue_timeout_s)

    def holds(self) -> list[tuple[str, HoldReason]]:
        """Waiting requests whose reason for waiting changed since the last call."""
        news, self._news = list(self._news.items()), {}
        return news

    def check(self) -> None:
        """Assert the invariants above; AssertionError says which is broken."""
        assert not self._waiting.keys() & self._active.keys(), "waiting and active overlap"
        here = self._waiting.keys() | self._active.keys()
        assert self._offered.keys() == here, "a request has no birth time, or a ghost has one"
        assert self._queue_since.keys() == self._waiting.keys(), "queue times and waiting differ"
        assert self._held.keys() <= self._waiting.keys(), "a hold reason outlived its request"
        counts = Counter(r.tenant for r in self._waiting.values())
        told = {tenant: account.waiting for tenant, account in self._ledger.waiting.items()}
        assert counts == told, "the ledger miscounts who waits"
        active = self._active.values()
        assert self._ledger.tokens_in_flight == sum(footprint(r) for r in active)

    def _leave_queue(self, request_id: str) -> None:
        request = self._waiting.pop(request_id)
        self._line.remove(request)
        self._ledger.left_queue(request)
        for book in (self._queue_since, self._held, self._news):
            book.pop(request_id, None)

    def _fits(self, request: Request, knobs: Knobs) -> bool:
        """The token budget has room; a request larger than all of it may run alone."""
        budget = knobs.max_tokens_in_flight
        taken = self._ledger.tokens_in_flight
        return budget is None or taken == 0 or taken + footprint(request) <= budget

    def _turn(self, knobs: Knobs, now: float) -> None:
        """Order anew when a knob has changed: O(n log n), loses nobody."""
        if knobs is not self._knobs:
            self._knobs = knobs
            self._line = WaitingLine(knobs, self._ledger)
            for request in self._waiting.values():
                self._line.add(request, now)

    def _explain_waiting(self, reason: HoldReason) -> None:
        """Those who came last wait for this; walked from the newest, so O(new ones)."""
        for request_id in reversed(self._waiting):
            if request_id in self._held:
                break
            self._tell(request_id, reason)

    def _explain_overtaken(self, chosen: Request) -> None:
        oldest = next(iter(self._waiting.values()), None)
        if oldest is None or self._line.is_parked(oldest.tenant):
            return
        if self._offered[oldest.id] < self._offered[chosen.id]:
            self._tell(oldest.id, "policy")

    def _tell(self, request_id: str, reason: HoldReason) -> None:
        if self._held.get(request_id) != reason:
            self._held[request_id] = self._news[request_id] = reason

    def _drain(self, now: float) -> float | None:
        """Requests finished per second over the last 64 finishes, idle time since included."""
        if len(self._finishes) < 2:
            return None
        span = max(now, self._finishes[-1]) - self._finishes[0]
        return (len(self._finishes) - 1) / span if span > 0 else None
