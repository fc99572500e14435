"""The front scheduler: who is handed to the engine next. No asyncio, no clock.

Invariants (`check`): every request offered and accepted is in exactly one of waiting and active
until it is finished, dropped or expired; active never exceeds the cap by anything but a lowered
cap; the heap holds a live entry for each waiting request under the order in force.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import NamedTuple

from llmserve.admission import Accepted, Load, Rejected, admit
from llmserve.core import HoldReason, Request
from llmserve.knobs import Knobs
from llmserve.policies import POLICIES, Key

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
        self._heap: list[tuple[Key, int, str]] = []
        self._order: tuple[str, float | None] | None = None
        self._count = 0
        self._finishes: deque[float] = deque(maxlen=_DRAIN_SAMPLES)
        self._held: dict[str, HoldReason] = {}
        self._news: dict[str, HoldReason] = {}

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def active(self) -> int:
        return len(self._active)

    def load(self, now: float) -> Load:
        return Load(len(self._waiting), len(self._active), self._drain(now), self.max_model_len)

    def offer(self, request: Request, knobs: Knobs, now: float) -> Accepted | Rejected:
        """Take the request into the waiting set, or refuse it. ValueError on a live id."""
        if request.id in self._offered:
            raise ValueError(f"request id {request.id} is already here")
        verdict = admit(request, self.load(now), knobs)
        if isinstance(verdict, Accepted):
            self._waiting[request.id] = request
            self._offered[request.id] = self._queue_since[request.id] = now
            self._reindex(knobs)
            self._push(request, knobs)
        return verdict

    def next(self, knobs: Knobs) -> Request | None:
        """The request to hand to the engine now, moved to active; None when none may go."""
        if len(self._active) >= knobs.active_cap:
            self._explain_waiting()
            return None
        self._reindex(knobs)
        while self._heap:
            request = self._waiting.pop(heapq.heappop(self._heap)[2], None)
            if request is not None:
                self._active[request.id] = request
                self._queue_since.pop(request.id)
                self._held.pop(request.id, None)
                self._news.pop(request.id, None)
                self._explain_overtaken(request)
                return request
        return None

    def finish(self, request_id: str, now: float) -> None:
        """An active request left the engine; its place is free."""
        del self._active[request_id]
        del self._offered[request_id]
        self._finishes.append(now)

    def drop(self, request_id: str) -> bool:
        """Forget a waiting request; False where it does not wait."""
        if self._waiting.pop(request_id, None) is None:
            return False
        for book in (self._offered, self._queue_since, self._held, self._news):
            book.pop(request_id, None)
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
        assert self._waiting.keys() <= {entry[2] for entry in self._heap}, "not in the heap"
        assert self._held.keys() <= self._waiting.keys(), "a hold reason outlived its request"

    def _push(self, request: Request, knobs: Knobs) -> None:
        self._count += 1
        heapq.heappush(
            self._heap, (POLICIES[knobs.policy](request, knobs), self._count, request.id)
        )

    def _reindex(self, knobs: Knobs) -> None:
        """Order anew when the policy or what its key reads has changed: O(n), loses nobody."""
        order = (knobs.policy, knobs.priority_aging_s)
        stale = len(self._heap) > 2 * len(self._waiting) + 16
        if order != self._order or stale:
            self._order = order
            key = POLICIES[knobs.policy]
            self._heap = [
                (key(request, knobs), n, request.id)
                for n, request in enumerate(self._waiting.values())
            ]
            heapq.heapify(self._heap)
            self._count = len(self._heap)

    def _explain_waiting(self) -> None:
        """Those who came last wait for a place; walked from the newest, so O(new ones)."""
        for request_id in reversed(self._waiting):
            if request_id in self._held:
                break
            self._tell(request_id, "cap")

    def _explain_overtaken(self, chosen: Request) -> None:
        oldest = next(iter(self._waiting.values()), None)
        if oldest is not None and self._offered[oldest.id] < self._offered[chosen.id]:
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
