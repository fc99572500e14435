"""Requests that wait in front of the engine, as their clients see it. The order is the scheduler's.

Who they are is in the scheduler's entries; what the service keeps of each is its `Handle` there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from llmserve.core.clock import Clock
from llmserve.core.knobs import Knobs
from llmserve.core.types import Chunk, FinishReason
from llmserve.scheduling.admission import Rejected
from llmserve.scheduling.entry import Entry
from llmserve.scheduling.scheduler import Scheduler
from llmserve.serving.publisher import Publisher
from llmserve.serving.stream import Refused, Stream


@dataclass(slots=True)
class Handle:
    """The service's part of an `Entry`: the client's stream and, once dispatched, the task."""

    stream: Stream
    task: asyncio.Task[None] = field(init=False)
    last: Chunk = Chunk(finish_reason="error")
    failure: Exception | None = None
    """What the engine raised on it."""
    stopped: bool = False
    ending: FinishReason = "abort"
    """Why it was stopped."""
    stop_error: Exception | None = None
    """What its client gets raised where it was stopped; None for nothing."""


class WaitingRequests:
    """Takes in admitted requests and ends those that wait."""

    def __init__(self, scheduler: Scheduler, clock: Clock, publisher: Publisher) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._publisher = publisher

    def enter(self, stream: Stream) -> None:
        """Take in a request that was admitted."""
        entry = self._scheduler.find(stream.request.id)
        assert entry is not None, "admit it first"
        entry.handle = Handle(stream)
        self._publisher.submitted(stream.request)

    def reject(self, entry: Entry, rejected: Rejected) -> None:
        """Reject a request that was admitted and is not served after all."""
        self._scheduler.drop(entry.id)
        self._publisher.rejected(entry.request, rejected)
        stream: Stream = entry.handle.stream
        stream.end(Chunk(finish_reason="timeout"), self._clock.now(), Refused(rejected))

    def end(self, entry: Entry, reason: FinishReason, failure: Exception | None) -> None:
        self._scheduler.drop(entry.id)
        stream: Stream = entry.handle.stream
        stream.end(Chunk(finish_reason=reason), self._clock.now(), failure)
        self._publisher.finished(entry.id, reason, stream.usage, failure)

    def reject_all(self, rejected: Rejected) -> None:
        for entry in self._all():
            self.reject(entry, rejected)

    def end_all(self, failure: Exception) -> None:
        for entry in self._all():
            self.end(entry, "error", failure)

    def _all(self) -> list[Entry]:
        return [entry for entry in self._scheduler.entries if entry.waits]


def expired_in_queue(knobs: Knobs, free_per_s: float | None) -> Rejected:
    """What one is told that waited longer than `queue_timeout_s`."""
    message = f"no slot came free within {knobs.queue_timeout_s:g} s (queue_timeout_s)"
    return Rejected("queue_timeout", 1 / free_per_s if free_per_s else None, message)


def expired_in_life(knobs: Knobs) -> str:
    """What one is told that was not done within `request_timeout_s`."""
    limit = knobs.request_timeout_s
    return f"the request was not done within {limit:g} s (request_timeout_s)"
