"""StepLog: the engine's last steps, whole."""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from llmserve.core import StepRecord
from llmserve.events import Event, StepRecorded

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
        """What came since the call that gave `cursor` (at first 0), and the next cursor."""
        with self._lock:
            fresh = min(self.total - cursor, len(self._records))
            return self.total, list(islice(self._records, len(self._records) - fresh, None))

    def to_frame(self) -> pd.DataFrame:
        """One row per step."""
        from llmserve.observe.frames import steps_frame

        return steps_frame(self.records())

    def tape(self) -> pd.DataFrame:
        """One row per request per step: who was in the batch, and with how many tokens."""
        from llmserve.observe.frames import tape_frame

        return tape_frame(self.records())
