"""RequestLog: one row per request, live ones and the latest of those that ended.

Invariants: every live request has a row; a row of an ended request stays until there are more
than `capacity` rows, and then those that ended first go first.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Literal, assert_never

import msgspec

from llmserve.core.events import (
    CacheLooked,
    DeviceSampled,
    Dispatched,
    Event,
    FairnessSampled,
    Finished,
    FirstToken,
    KnobsChanged,
    KnobsSatisfied,
    Rejection,
    RejectReason,
    StepRecorded,
    Submitted,
    TokensEmitted,
    WaitReasonChanged,
)
from llmserve.core.types import FinishReason, WaitReason

if TYPE_CHECKING:
    import pandas as pd

RequestState = Literal["waiting", "active", "done", "refused"]


class RequestRow(msgspec.Struct, kw_only=True, gc=False):
    """What is known of one request. None stands for "not yet" or "not known"."""

    id: str
    tenant: str
    priority: int
    state: RequestState
    arrival: float
    """When it was submitted; of one rejected on arrival, when it was rejected."""
    prompt_tokens: int | None = None
    max_tokens: int | None = None
    completion_tokens: int = 0
    cached_tokens: int | None = None
    queue_s: float | None = None
    ttft_s: float | None = None
    e2e_s: float | None = None
    finish_reason: FinishReason | RejectReason | None = None
    error: str | None = None
    preemptions: int = 0
    hold_reason: WaitReason | None = None
    """Why it waits, or last waited."""


class RequestLog:
    """Attach to an EventBus; read with `rows` from any thread."""

    def __init__(self, capacity: int = 2000) -> None:
        self.capacity = capacity
        self._lock = threading.Lock()
        self._rows: dict[str, RequestRow] = {}
        self._ended: deque[str] = deque()

    def rows(self, limit: int | None = None) -> list[RequestRow]:
        """Copies of the rows, by arrival, the newest last; the newest `limit` of them."""
        with self._lock:
            skip = 0 if limit is None else max(0, len(self._rows) - limit)
            return [copy.copy(row) for row in islice(self._rows.values(), skip, None)]

    def to_frame(self, limit: int | None = None) -> pd.DataFrame:
        """`rows` as a DataFrame, indexed by request id."""


        return requests_frame(self.rows(limit))

    def __call__(self, event: Event) -> None:
        with self._lock:
            match event:
                case TokensEmitted():
                    for request_id, n in event.counts.items():
                        if (row := self._rows.get(request_id)) is not None:
                            row.completion_tokens += n
                case StepRecorded():
                    for request_id in event.record.preempted:
                        if (row := self._rows.get(request_id)) is not None:
                            row.preemptions += 1
                case Submitted():
                    self._submit(event)
                case WaitReasonChanged():
                    if (row := self._rows.get(event.request_id)) is not None:
                        row.hold_reason = event.reason
                case Dispatched():
                    if (row := self._rows.get(event.request_id)) is not None:
                        row.state = "active"
                        row.queue_s = event.t - row.arrival
                case FirstToken():
                    if (row := self._rows.get(event.request_id)) is not None:
                        row.ttft_s = event.t - row.arrival
                        row.cached_tokens = event.cached_tokens
                case Finished():
                    self._finish(event)
                case Rejection():
                    self._refuse(event)
                case (
                    DeviceSampled() | KnobsChanged() | KnobsSatisfied() | FairnessSampled()
                    | CacheLooked()
                ):
                    pass
                case _:
                    assert_never(event)

    def _submit(self, event: Submitted) -> None:
        self._rows[event.request_id] = RequestRow(
            id=event.request_id,
            tenant=event.tenant,
            priority=event.priority,
            state="waiting",
            arrival=event.t,
            prompt_tokens=event.prompt_tokens,
            max_tokens=event.max_tokens,
        )
        self._make_room()

    def _finish(self, event: Finished) -> None:
        if (row := self._rows.get(event.request_id)) is None:
            return
        row.state = "done"
        row.e2e_s = event.t - row.arrival
        row.completion_tokens = event.completion_tokens
        row.finish_reason = event.reason
        row.error = event.error
        self._end(row)

    def _refuse(self, event: Rejection) -> None:
        row = self._rows.get(event.request_id)
        if row is None:
            row = self._rows[event.request_id] = RequestRow(
                id=event.request_id,
                tenant=event.tenant,
                priority=event.priority,
                state="refused",
                arrival=event.t,
            )
        row.state = "refused"
        row.finish_reason = event.reason
        row.e2e_s = event.t - row.arrival
        self._end(row)

    def _end(self, row: RequestRow) -> None:
        self._ended.append(row.id)
        self._make_room()

    def _make_room(self) -> None:
        while len(self._rows) > self.capacity and self._ended:
            del self._rows[self._ended.popleft()]


def requests_frame(rows: Sequence[RequestRow]) -> pd.DataFrame:
    """One row per request, indexed by its id: where its time went as `queue_s` (arrival to the
    engine), `prefill_s` (to the first token) and `decode_s` (to the end), in seconds."""
    import pandas as pd

    columns = list(RequestRow.__struct_fields__)
    values = [msgspec.structs.astuple(row) for row in rows]
    frame = pd.DataFrame.from_records(values, columns=columns).set_index("id")
    times = frame[["queue_s", "ttft_s", "e2e_s"]].astype(float)
    at = columns.index("ttft_s")  # the id is the index, so this is behind it
    frame.insert(at, "prefill_s", times["ttft_s"] - times["queue_s"])
    frame.insert(at + 1, "decode_s", times["e2e_s"] - times["ttft_s"])
    return frame
