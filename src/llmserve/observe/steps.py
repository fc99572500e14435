"""StepLog: the engine's last steps, whole."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from llmserve.core.events import Event, StepRecorded
from llmserve.core.types import StepRecord

if TYPE_CHECKING:
    import pandas as pd


class StepLog:
    """Attach to an EventBus; read from any thread. Keeps the newest `capacity` records."""

    def __init__(self, capacity: int = 10_000) -> None:
        self._lock = threading.Lock()
        self._records: deque[StepRecord] = deque(maxlen=capacity)
        self.total = 0
        """Steps seen since the session began, those that fell out included."""
        self.missing = 0
        """Steps whose record never came: gaps in an engine's count (a restart begins anew)."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepRecorded):  # the one event that this fold is about
            self.fold(event.record)

    def fold(self, record: StepRecord) -> None:
        with self._lock:
            if self._records and record.index > self._records[-1].index:
                self.missing += record.index - self._records[-1].index - 1
            self._records.append(record)
            self.total += 1

    def records(self, since: int | None = None, limit: int | None = None) -> list[StepRecord]:
        """The newest `limit` of the records whose index is above `since`, oldest first.

        Indices begin anew when an engine restarts; a reader that polls uses `after`.
        """
        with self._lock:
            kept = list(self._records)
        if since is not None:
            kept = [record for record in kept if record.index > since]
        return kept if limit is None else kept[max(0, len(kept) - limit) :]

    def after(self, cursor: int) -> tuple[int, list[StepRecord]]:
        """Return what came since the call that gave `cursor` (at first 0), and the next cursor."""
        with self._lock:
            fresh = min(self.total - cursor, len(self._records))
            return self.total, list(islice(self._records, len(self._records) - fresh, None))

    def to_frame(self) -> pd.DataFrame:
        """One row per step."""


        return steps_frame(self.records())

    def tape(self) -> pd.DataFrame:
        """One row per request per step: who was in the batch, and with how many tokens."""


        return tape_frame(self.records())


_STEP_COLUMNS = (
    "index", "start_s", "duration_s", "running", "waiting", "kv_used_tokens",
    "kv_capacity_tokens", "max_num_seqs", "max_num_batched_tokens", "cached_tokens",
    "draft_tokens", "accepted_tokens",
)
_STEP_COUNTS = ("rows", "prefill_tokens", "decode_tokens", "preempted", "wait_reasons")
_TAPE_COLUMNS = ("step", "start_s", "duration_s", "request_id", "kind", "tokens")


def steps_frame(records: Iterable[StepRecord]) -> pd.DataFrame:
    """One row per engine step. `wait_reasons`: requests that wait for another reason from
    this step on, each with that reason."""
    import pandas as pd

    values = [
        (
            *(getattr(record, name) for name in _STEP_COLUMNS),
            len(record.rows), record.prefill_tokens, record.decode_tokens, len(record.preempted),
            dict(record.wait_reasons),
        )
        for record in records
    ]
    columns = [*_STEP_COLUMNS, *_STEP_COUNTS]
    return pd.DataFrame.from_records(values, columns=columns).rename(columns={"index": "step"})


def tape_frame(records: Iterable[StepRecord]) -> pd.DataFrame:
    """One row per request per step: who was in the batch, and with how many tokens."""
    import pandas as pd

    values = [
        (record.index, record.start_s, record.duration_s, row.request_id, row.kind, row.tokens)
        for record in records
        for row in record.rows
    ]
    return pd.DataFrame.from_records(values, columns=list(_TAPE_COLUMNS))
