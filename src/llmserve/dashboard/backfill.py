"""What happened before a dashboard was opened, out of the logs that a session keeps anyway.

Nothing is recorded for dashboards that nobody has opened. When the first one opens, the newest
requests and engine steps are replayed to its folds as the events that they came of, and the figures
are worked out second by second from the samples that `LiveStats` still has.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

from msgspec.structs import replace

from llmserve.core.events import (
    Dispatched,
    Event,
    EventBus,
    Finished,
    FirstToken,
    KnobsSatisfied,
    Rejection,
    RejectReason,
    StepRecorded,
    Submitted,
    WaitReasonChanged,
)
from llmserve.core.types import FinishReason, StepRecord
from llmserve.dashboard.panels import WINDOW_S
from llmserve.observe.attribution import WhyFold
from llmserve.observe.request_timeline import RequestTimelines
from llmserve.observe.requests import RequestLog, RequestRow
from llmserve.observe.stats import LiveStats, Snapshot
from llmserve.observe.steps import StepLog

EVERY_S = 1.0
MOST_S = 600.0
Fold = Callable[[Event], None]


class TelemetryLike(Protocol):
    @property
    def stats(self) -> LiveStats: ...
    @property
    def requests(self) -> RequestLog: ...
    @property
    def steps(self) -> StepLog: ...
    @property
    def why(self) -> WhyFold: ...


class EventBuffer:
    """Keeps events published meanwhile, until folds have had the earlier ones."""

    def __init__(self, bus: EventBus, folds: Sequence[Fold]) -> None:
        self._bus = bus
        self._folds = folds
        self._lock = threading.Lock()
        self._pending: list[Event] | None = []
        bus.attach(self)

    def __call__(self, event: Event) -> None:
        with self._lock:
            if self._pending is not None:
                self._pending.append(event)
                return
        for fold in self._folds:  # an event on its way while the buffer was opened
            fold(event)

    def open(self, known: Callable[[Event], bool]) -> None:
        """Send the folds what was kept and is not `known`, and attach them to the bus."""
        with self._lock:
            pending, self._pending = self._pending or [], None
            for event in pending:
                if not known(event):
                    for fold in self._folds:
                        fold(event)
            for fold in self._folds:
                self._bus.attach(fold)
            self._bus.detach(self)


class Backfill:
    """Replays past events from the logs, which it reads once, when it is made."""

    def __init__(self, telemetry: TelemetryLike, now: float) -> None:
        self._stats = telemetry.stats
        self._now = now
        steps = telemetry.steps.records()
        rows = telemetry.requests.rows()
        self._known_steps = {id(record) for record in steps}
        self._last_rows = _last_rows(steps, {row.id for row in rows})
        self._refused = {row.id for row in rows if row.state == "refused"}
        events = [event for record in steps for event in _step(record)]  # first at their time
        events += [event for row in rows for event in _request(row)]
        events += telemetry.why.changes()
        self._events = sorted(events, key=lambda event: event.t)
        began = telemetry.stats.began
        self.began = now if began is None else began

    def known(self, event: Event) -> bool:
        """Whether `replay` sends this event. Other events of a request may be sent twice: the
        second time they change nothing."""
        if isinstance(event, StepRecorded):
            return id(event.record) in self._known_steps
        return isinstance(event, Rejection) and event.request_id in self._refused

    def replay(
        self, folds: Sequence[Fold], lose: Callable[[str, float], None] = lambda name, t: None
    ) -> Iterator[Snapshot]:
        """Send the folds past events, and yield the figures as they were at each second.

        Only seconds whose samples are all still there have figures. `lose` is called for a request
        whose end the logs have let go, after the last step that it was in."""
        timelines = RequestTimelines()
        last: StepRecord | None = None
        due = max(self.began, self._now - MOST_S) + EVERY_S
        for event in [*self._events, None]:
            until = self._now if event is None else event.t
            while due <= until:
                yield from self._at(due, timelines, last)
                due += EVERY_S
            if event is not None:
                _count(timelines, event)
                last = event.record if isinstance(event, StepRecorded) else last
                for fold in folds:
                    fold(event)
                if isinstance(event, StepRecorded):
                    for name in self._last_rows.get(id(event.record), ()):
                        lose(name, event.t)

    def _at(
        self, t: float, timelines: RequestTimelines, last: StepRecord | None
    ) -> Iterator[Snapshot]:
        snapshot = self._stats.snapshot(t, WINDOW_S)
        if snapshot.capped:
            return
        yield replace(
            snapshot, running=timelines.running, waiting=timelines.waiting, devices=(),
            kv_used_tokens=None if last is None else timelines.kv_in_use(last),
            kv_capacity_tokens=None if last is None else last.kv_capacity_tokens,
        )  # fmt: skip


def _last_rows(steps: Sequence[StepRecord], known: set[str]) -> dict[int, list[str]]:
    """By record: the requests not `known` that were in no later step. A request that has not ended
    is known, so these have."""
    last = {row.request_id: id(record) for record in steps for row in record.rows}
    found: dict[int, list[str]] = {}
    for name, record in last.items():
        if name not in known:
            found.setdefault(record, []).append(name)
    return found


def _count(timelines: RequestTimelines, event: Event) -> None:
    if isinstance(event, Submitted):
        timelines.submit(event)
    elif isinstance(event, Dispatched):
        timelines.dispatch(event)
    elif isinstance(event, Finished | Rejection):
        timelines.end(event.request_id)


def _request(row: RequestRow) -> Iterator[Event]:
    """Of a request's waits the log knows the last reason only: it stands for all of them."""
    born, name = row.arrival, row.id
    if row.prompt_tokens is not None and row.max_tokens is not None:
        yield Submitted(
            t=born, request_id=name, tenant=row.tenant, priority=row.priority,
            prompt_tokens=row.prompt_tokens, max_tokens=row.max_tokens,
        )  # fmt: skip
        if row.hold_reason is not None:
            yield WaitReasonChanged(t=born, request_id=name, reason=row.hold_reason)
    if row.queue_s is not None:
        yield Dispatched(t=born + row.queue_s, request_id=name)
    if row.ttft_s is not None:
        yield FirstToken(t=born + row.ttft_s, request_id=name, cached_tokens=row.cached_tokens or 0)
    if row.e2e_s is None:
        return
    if row.state == "refused":
        why = cast("RejectReason", row.finish_reason)
        yield Rejection(
            t=born + row.e2e_s, request_id=name, tenant=row.tenant, priority=row.priority,
            reason=why,
        )  # fmt: skip
    else:
        yield Finished(
            t=born + row.e2e_s, request_id=name, reason=cast("FinishReason", row.finish_reason),
            prompt_tokens=row.prompt_tokens or 0, completion_tokens=row.completion_tokens,
        )  # fmt: skip


def _step(record: StepRecord) -> Iterator[Event]:
    t = record.start_s + record.duration_s
    for request_id, reason in record.wait_reasons:
        yield WaitReasonChanged(t=t, request_id=request_id, reason=reason, step=record.index)
    yield StepRecorded(t=t, record=record)
    for name in record.satisfied:
        yield KnobsSatisfied(t=t, name=name, step=record.index)
