"""Who waits in front of the engine, as their clients see it. The order is the scheduler's."""

from __future__ import annotations

from llmserve.core.clock import Clock
from llmserve.core.types import Chunk, FinishReason, Request
from llmserve.scheduling.admission import Rejected
from llmserve.scheduling.scheduler import Scheduler
from llmserve.serving.publisher import Publisher
from llmserve.serving.stream import Refused, Stream


class WaitingRequests:
    def __init__(self, scheduler: Scheduler, clock: Clock, tell: Publisher) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._tell = tell
        self._waiting: dict[str, Stream] = {}

    def enter(self, stream: Stream) -> None:
        self._waiting[stream.request.id] = stream

    def leave(self, request_id: str) -> Stream:
        """On its way to the engine."""
        return self._waiting.pop(request_id)

    def find(self, request_id: str) -> Request | None:
        stream = self._waiting.get(request_id)
        return None if stream is None else stream.request

    def refuse(self, request_id: str, rejected: Rejected) -> None:
        """It was let in and is not served after all."""
        stream = self._waiting.pop(request_id)
        self._scheduler.drop(request_id)
        self._tell.refused(stream.request, rejected)
        stream.end(Chunk(finish_reason="timeout"), self._clock.now(), Refused(rejected))

    def end(self, request_id: str, reason: FinishReason, failure: Exception | None) -> None:
        stream = self._waiting.pop(request_id)
        self._scheduler.drop(request_id)
        self._tell.ended(stream, Chunk(finish_reason=reason), failure)

    def refuse_all(self, rejected: Rejected) -> None:
        for request_id in list(self._waiting):
            self.refuse(request_id, rejected)

    def end_all(self, failure: Exception) -> None:
        for request_id in list(self._waiting):
            self.end(request_id, "error", failure)
