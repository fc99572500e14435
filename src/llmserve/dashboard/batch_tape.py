"""The batch tape: which request was in which step, and what the others waited for.

A fold over events. It keeps runs instead of cells: one segment says that a request did the same
from one step to another, so that a reply of 500 tokens is one segment and not 500 cells, and an
update is a few hundred bytes. Steps count from the first one seen here, for an engine that
restarts begins anew.

Invariants: a request has at most one open segment, and none once it has ended, for the record of
the step that was under way may come after its end; closed ones come in the order of their ends;
whatever a reader lacks is newer than its cursor. Readers may be in any thread.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass
from itertools import islice
from typing import Final, get_args

import msgspec

from llmserve.core.events import (
    Dispatched,
    Event,
    Finished,
    FirstToken,
    Rejection,
    StepRecorded,
    Submitted,
    WaitReasonChanged,
)
from llmserve.core.types import StepRecord, WaitReason

STEPS = 10_000
SEGMENTS = 60_000
REQUESTS = 2_000
KINDS: Final = ("prefill", "decode", "preempted", "waiting", *get_args(WaitReason))
"""What a segment may be. A waiting one is named by its wait reason once there is one."""
OPEN: Final = 0xFFFF_FFFF
UPDATE_BYTES = 10_000
_ROW_BYTES = 130
_PREFILL, _DECODE, _PREEMPTED, _WAITING = range(4)
_REASON: Final = {reason: KINDS.index(reason) for reason in get_args(WaitReason)}
_STEP = struct.Struct("<df5I")  # start, duration, index, prefill, decode, waiting, KV tokens
_SEGMENT = struct.Struct("<3IHHI")  # request, first and last step, kind, tokens a step, KV before


class _Segment(msgspec.Struct, gc=False):
    number: int
    kind: int
    first: int
    last: int
    tokens: int
    kv: int
    """Tokens stored when it began."""
    revision: int
    """Of all that happens here, counted up; a reader asks for later ones."""

    def pack(self, last: int) -> bytes:
        tokens = min(self.tokens, 0xFFFF)
        return _SEGMENT.pack(self.number, self.first, last, self.kind, tokens, self.kv)

    def stored(self) -> int:
        """Tokens of KV after its last step."""
        running = self.kind in (_PREFILL, _DECODE)
        return self.kv + (self.tokens * (self.last - self.first + 1) if running else 0)


class TapeRow(msgspec.Struct, gc=False):
    """One request's row of the table. Times are seconds on the session's clock."""

    number: int
    id: str
    tenant: str | None = None
    priority: int = 0
    prompt_tokens: int | None = None
    submitted: float | None = None
    dispatched: float | None = None
    first: float | None = None
    ended: float | None = None
    reason: str | None = None
    tokens: int | None = None
    preemptions: int = 0
    cached: int = 0
    """Prompt tokens whose KV was there already."""
    revision: int = 0

    def as_json(self, t0: float) -> list[object]:
        times = (self.submitted, self.dispatched, self.first, self.ended)
        return [
            self.number, self.id, self.tenant, self.priority, self.prompt_tokens,
            *(None if t is None else round(t - t0, 4) for t in times),
            self.reason, self.tokens, self.preemptions, self.cached,
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cursor:
    """How much of the tape a reader has."""

    steps: int = 0
    closed: int = 0
    opened: int = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class TapeNews:
    cursor: Cursor
    first_step: int
    """Of `steps`, which are one after the other."""
    steps: bytes
    segments: bytes
    rows: list[list[object]]

    @property
    def empty(self) -> bool:
        return not (self.steps or self.segments or self.rows)


class TapeLog:
    """Attach to an EventBus; read with `news`."""

    def __init__(self, t0: float = 0.0) -> None:
        self.t0 = t0
        """What times count from. Set it before the first event."""
        self._lock = threading.Lock()
        self._steps: deque[bytes] = deque(maxlen=STEPS)
        self._closed: deque[bytes] = deque(maxlen=SEGMENTS)
        self._open: dict[str, _Segment] = {}
        self._running: set[str] = set()  # whose open segment is of a step's row
        self._rows: OrderedDict[str, TapeRow] = OrderedDict()  # by their last change
        self._total = 0
        self._closed_total = 0
        self._revision = 0
        self._numbers = 0

    def __call__(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, StepRecorded):
                self._step(event.record)
            elif isinstance(event, Submitted):
                self._submit(event)
            elif isinstance(event, WaitReasonChanged):
                self._waits_for(event.request_id, event.reason)
            elif isinstance(event, Dispatched):
                self._row(event.request_id).dispatched = event.t
            elif isinstance(event, FirstToken):
                row = self._row(event.request_id)
                row.first, row.cached = event.t, event.cached_tokens
            elif isinstance(event, Finished):
                self._end(event.request_id, event.t, event.reason, event.completion_tokens)
            elif isinstance(event, Rejection):
                row = self._row(event.request_id)
                row.tenant, row.priority = event.tenant, event.priority
                self._end(event.request_id, event.t, event.reason, 0)

    def lose(self, request_id: str, t: float) -> None:
        """Note that a request had ended by then; how is unknown, for the logs have let it go."""
        with self._lock:
            self._end(request_id, t, None, None)

    def news(self, cursor: Cursor, limit: int | None = UPDATE_BYTES) -> TapeNews:
        """What came since `cursor`, the oldest first, in about `limit` bytes at most."""
        left = limit if limit is not None else 1 << 30
        with self._lock:
            first = max(cursor.steps, self._total - len(self._steps))
            steps = _newest(self._steps, self._total - first)[: left // 2 // _STEP.size]
            left -= len(steps) * _STEP.size
            rows = self._changed_rows(cursor.rows)[: left // 2 // _ROW_BYTES]
            left -= len(rows) * _ROW_BYTES
            start = max(cursor.closed, self._closed_total - len(self._closed))
            room = left // _SEGMENT.size
            closed = _newest(self._closed, self._closed_total - start)[:room]
            opened = sorted(
                (s for s in self._open.values() if s.revision > cursor.opened),
                key=lambda segment: segment.revision,
            )[: room - len(closed)]
            after = Cursor(
                first + len(steps),
                start + len(closed),
                opened[-1].revision if opened else cursor.opened,
                rows[-1].revision if rows else cursor.rows,
            )
            segments = b"".join((*closed, *(segment.pack(OPEN) for segment in opened)))
            rows_sent = [row.as_json(self.t0) for row in rows]
        return TapeNews(after, first, b"".join(steps), segments, rows_sent)

    def _changed_rows(self, revision: int) -> list[TapeRow]:
        changed = []
        for row in reversed(self._rows.values()):
            if row.revision <= revision:
                break
            changed.append(row)
        return changed[::-1]

    def _submit(self, event: Submitted) -> None:
        row = self._row(event.request_id)
        again = row.submitted is not None or row.ended is not None
        row.tenant, row.priority = event.tenant, event.priority
        row.prompt_tokens, row.submitted = event.prompt_tokens, event.t
        if not again:
            self._begin(row.id, _WAITING, 0, 0)

    def _step(self, record: StepRecord) -> None:
        for request_id in record.preempted:
            victim = self._row(request_id)
            victim.preemptions += 1
            if victim.ended is None:
                self._begin(request_id, _PREEMPTED, 0, 0)
        for request_id, reason in record.wait_reasons:
            self._waits_for(request_id, reason)
        now, open_segments, here = self._total, self._open, 0
        for row in record.rows:
            segment = open_segments.get(row.request_id)
            if segment is None and self._has_ended(row.request_id):
                continue
            kind = _PREFILL if row.kind == "prefill" else _DECODE
            if (
                segment is None or segment.kind != kind or segment.tokens != row.tokens
                or segment.last != now - 1
            ):
                stored = 0 if segment is None else segment.stored()
                segment = self._begin(row.request_id, kind, row.tokens, stored)
            segment.last = now
            here += 1
        if here != len(self._running):
            for request_id in [i for i in self._running if open_segments[i].last != now]:
                segment = open_segments[request_id]
                self._begin(request_id, _REASON["token_budget"], 0, segment.stored())
        self._add_step(record)

    def _has_ended(self, request_id: str) -> bool:
        row = self._rows.get(request_id)
        return row is not None and row.ended is not None

    def _add_step(self, record: StepRecord) -> None:
        prefill = record.prefill_tokens
        start = record.start_s - self.t0
        counts = (record.index, prefill, record.computed_tokens - prefill)
        self._steps.append(
            _STEP.pack(start, record.duration_s, *counts, record.waiting, record.kv_used_tokens)
        )
        self._total += 1

    def _begin(self, request_id: str, kind: int, tokens: int, kv: int) -> _Segment:
        """Close what the request did until now, and open the next."""
        self._close(request_id)
        self._revision += 1
        number = self._row(request_id, touch=False).number
        segment = _Segment(number, kind, self._total, self._total, tokens, kv, self._revision)
        self._open[request_id] = segment
        if kind in (_PREFILL, _DECODE):
            self._running.add(request_id)
        return segment

    def _close(self, request_id: str) -> None:
        segment = self._open.pop(request_id, None)
        if segment is None:
            return
        running = request_id in self._running
        self._running.discard(request_id)
        last = segment.last if running else self._total - 1
        if last >= segment.first:  # what began and ended between two steps shows in no column
            self._closed.append(segment.pack(last))
            self._closed_total += 1

    def _waits_for(self, request_id: str, reason: WaitReason) -> None:
        segment = self._open.get(request_id)
        if segment is None or request_id in self._running or segment.kind == _PREEMPTED:
            return
        if segment.kind != _REASON[reason]:
            self._begin(request_id, _REASON[reason], 0, 0)

    def _end(self, request_id: str, t: float, reason: str | None, tokens: int | None) -> None:
        self._close(request_id)
        row = self._row(request_id)
        row.ended, row.reason, row.tokens = t, reason, tokens

    def _row(self, request_id: str, touch: bool = True) -> TapeRow:
        """The request's row, which is about to change; a new one for who was here before us."""
        row = self._rows.get(request_id)
        if row is None:
            row = self._rows[request_id] = TapeRow(self._numbers, request_id)
            self._numbers += 1
            touch = True
            if len(self._rows) > REQUESTS:
                self._rows.popitem(last=False)
        if touch:
            self._revision += 1
            row.revision = self._revision
            self._rows.move_to_end(request_id)
        return row


def _newest(entries: deque[bytes], count: int) -> list[bytes]:
    return list(islice(entries, len(entries) - count, None))
