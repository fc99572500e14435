"""The one stream of events. Everything shown anywhere is a fold over it.

`serving/publisher.py` publishes, and nothing else does; folds (`observe/`) listen. The union is
closed: add an event, and mypy's `assert_never` lists the folds to update. Events are plain values
that travel as JSON lines.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Literal

import msgspec

from llmserve.core.knobs import KnobValue
from llmserve.core.types import FinishReason, Request, StepRecord, WaitReason

log = logging.getLogger(__name__)

RejectReason = Literal[
    "queue_full", "no_place", "rate_limit", "slo", "queue_timeout", "too_long", "stopping"
]


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    t: float
    """Seconds on the session's clock."""


class Submitted(_Event, frozen=True, kw_only=True):
    request_id: str
    tenant: str
    priority: int
    prompt_tokens: int
    max_tokens: int

    @classmethod
    def of(cls, request: Request) -> Submitted:
        return cls(
            t=request.arrival,
            request_id=request.id,
            tenant=request.tenant,
            priority=request.priority,
            prompt_tokens=len(request.prompt_ids),
            max_tokens=request.sampling.max_tokens,
        )


class Rejection(_Event, frozen=True, kw_only=True):
    """A request was rejected by admission control, or after waiting too long for a slot."""

    request_id: str
    tenant: str
    priority: int
    reason: RejectReason
    retry_after_s: float | None = None


class WaitReasonChanged(_Event, frozen=True, kw_only=True):
    """The reason for which a request waits is now this one."""

    request_id: str
    reason: WaitReason
    step: int | None = None
    """The engine's step that said so; None when the front scheduler did."""


class Dispatched(_Event, frozen=True, kw_only=True):
    """A request left the front queue for the engine."""

    request_id: str


class FirstToken(_Event, frozen=True, kw_only=True):
    request_id: str
    cached_tokens: int = 0


class TokensEmitted(_Event, frozen=True, kw_only=True, gc=False):
    """Tokens reached the service together, as one step brings them to many requests; the first of
    a request among them."""

    counts: dict[str, int]
    """How many, by request."""

    @property
    def n(self) -> int:
        return sum(self.counts.values())


class Finished(_Event, frozen=True, kw_only=True):
    """A request left the engine, for whatever reason."""

    request_id: str
    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    error: str | None = None
    cached_tokens: int | None = None
    """Of the prompt, where it became known only now: a server at an address reports it last."""


class KnobsChanged(_Event, frozen=True, kw_only=True):
    changed: dict[str, tuple[KnobValue, KnobValue]]
    source: str
    step: int | None
    ms: float
    clamped: tuple[str, ...] = ()


class KnobsSatisfied(_Event, frozen=True, kw_only=True):
    """A lowered cap is now kept by all that runs."""

    name: str
    step: int


class StepRecorded(_Event, frozen=True, kw_only=True):
    record: StepRecord


class FairnessSampled(_Event, frozen=True, kw_only=True):
    """Under fair_share, a few times a second while two tenants or more wait."""

    gap: float
    """Largest difference of service between two of them, in weighted tokens."""
    bound: float
    """What the policy promises that it never exceeds, for the traffic seen so far."""
    tenants: int


class CacheLooked(_Event, frozen=True, kw_only=True):
    """A request whose reply may be cached was looked up; a hit never reaches the scheduler."""

    request_id: str
    tenant: str
    hit: bool


class DeviceSampled(_Event, frozen=True, kw_only=True):
    """`kind` says what was measured: a GPU by NVML, or the host where there is no GPU."""

    kind: Literal["gpu", "host"]
    name: str
    used_bytes: int
    total_bytes: int
    own_bytes: int | None = None
    """This session's processes; None where the platform does not say."""
    utilization: float | None = None
    """0 to 1, of the GPU or of all CPU cores."""
    power_w: float | None = None
    temperature_c: float | None = None


Event = (
    Submitted | Rejection | WaitReasonChanged | Dispatched | FirstToken | TokensEmitted | Finished
    | KnobsChanged | KnobsSatisfied | StepRecorded | FairnessSampled | CacheLooked | DeviceSampled
)


class Subscription:
    """A bounded mailbox for a reader in another thread. Overflow drops the oldest, counted."""

    def __init__(self, capacity: int, close: Callable[[Subscription], None]) -> None:
        self._events: deque[Event] = deque()
        self._capacity = capacity
        self._lock = threading.Lock()
        self._close = close
        self.dropped = 0

    def put(self, event: Event) -> None:
        with self._lock:
            if len(self._events) == self._capacity:
                self._events.popleft()
                self.dropped += 1
            self._events.append(event)

    def drain(self) -> list[Event]:
        with self._lock:
            events, self._events = list(self._events), deque()
        return events

    def close(self) -> None:
        self._close(self)


class EventBus:
    """Publishes from one thread to folds (called at once) and to mailboxes (read elsewhere)."""

    def __init__(self) -> None:
        self._folds: tuple[Callable[[Event], None], ...] = ()
        self._lock = threading.Lock()
        self._emitted: dict[str, int] = {}
        self._emitted_t = 0.0

    def publish(self, event: Event) -> None:
        if self._emitted:
            self.flush()
        self._send(event)

    def emitted(self, request_id: str, n: int, t: float) -> None:
        """Tokens of one request. All of one moment become one event, published before the next
        event of any kind, or by `flush`."""
        if t != self._emitted_t:
            self.flush()
            self._emitted_t = t
        waiting = self._emitted
        waiting[request_id] = waiting.get(request_id, 0) + n

    def flush(self) -> None:
        """Publish the tokens that wait for more of their moment."""
        if self._emitted:
            counts, self._emitted = self._emitted, {}
            self._send(TokensEmitted(t=self._emitted_t, counts=counts))

    def _send(self, event: Event) -> None:
        for fold in self._folds:
            try:
                fold(event)
            except Exception:  # a broken fold must not stop serving: it is removed
                log.exception("an event fold raised and was removed: %r", fold)
                self.detach(fold)

    def attach(self, fold: Callable[[Event], None]) -> None:
        """Call `fold(event)` for each event, in the publishing thread: it must be quick."""
        with self._lock:
            self._folds = (*self._folds, fold)

    def detach(self, fold: Callable[[Event], None]) -> None:
        with self._lock:
            self._folds = tuple(f for f in self._folds if f != fold)

    def subscribe(self, capacity: int = 65_536) -> Subscription:
        mailbox = Subscription(capacity, lambda box: self.detach(box.put))
        self.attach(mailbox.put)
        return mailbox
