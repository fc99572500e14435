"""Requests in the engine: one task each, from the hand-over to the end that is told.

Cancelling a request's task is stopping its work; every end, good or bad, passes `_leave` once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from llmserve.core.clock import Clock
from llmserve.core.events import Dispatched, EventBus, FirstToken, TokensEmitted
from llmserve.core.types import Chunk, FinishReason, ParamError, Request
from llmserve.engines.base import Engine, EngineError, RequestFailed
from llmserve.scheduling.scheduler import Scheduler
from llmserve.serving.publisher import Publisher
from llmserve.serving.stream import Stream

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    stream: Stream
    last: Chunk = Chunk(finish_reason="error")
    failure: Exception | None = None
    ending: FinishReason = "abort"
    """What a cancelled task means."""
    told: Exception | None = None
    """What the client of a cancelled task is told."""
    stopped: bool = False
    task: asyncio.Task[None] = field(init=False)


class RunningRequests:
    """`died` is called when a request fails because the engine did, `left` after each end."""

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        bus: EventBus,
        clock: Clock,
        tell: Publisher,
        *,
        died: Callable[[], None],
        left: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._bus = bus
        self._clock = clock
        self._tell = tell
        self._died = died
        self._left = left
        self._running: dict[str, _Running] = {}

    def __len__(self) -> int:
        return len(self._running)

    def find(self, request_id: str) -> Request | None:
        running = self._running.get(request_id)
        return None if running is None else running.stream.request

    def run(self, stream: Stream) -> None:
        request_id = stream.request.id
        self._bus.publish(Dispatched(t=self._clock.now(), request_id=request_id))
        running = self._running[request_id] = _Running(stream)
        running.task = asyncio.get_running_loop().create_task(self._run(running))
        # a task cancelled before its first step runs no `finally` of its own
        running.task.add_done_callback(partial(self._leave, running))

    def cancel(
        self, request_id: str, ending: FinishReason = "abort", told: Exception | None = None
    ) -> bool:
        """Stop the work on it; False where it is not in the engine. Only the first call counts."""
        running = self._running.get(request_id)
        if running is None:
            return False
        if not running.stopped:
            running.stopped, running.ending, running.told = True, ending, told
            running.task.cancel()
        return True

    async def drain(self, seconds: float, told: Exception) -> int:
        """Return when the engine holds no request. Who has not ended by itself after `seconds` is
        ended, and told so; how many that were."""
        if seconds > 0 and self._running:
            await asyncio.wait([one.task for one in self._running.values()], timeout=seconds)
        left = list(self._running)
        for request_id in left:
            self.cancel(request_id, told=told)
        if left:
            await asyncio.wait([one.task for one in self._running.values()], timeout=5)
        await asyncio.sleep(0)  # their done callbacks tell the ends
        return len(left)

    async def _run(self, running: _Running) -> None:
        """One request's life in the engine; its end is told by `_leave`."""
        try:
            await self._engine.generate(running.stream.request, partial(self._deliver, running))
        except EngineError as error:
            running.failure = error
            self._died()
        except ParamError as error:
            running.failure = error
        except RequestFailed as error:
            running.failure = EngineError(str(error))
        except Exception as error:
            log.exception("request %s failed in the engine", running.stream.request.id)
            running.failure = EngineError(f"the engine failed on this request: {error!r}")

    def _deliver(self, running: _Running, chunk: Chunk) -> None:
        running.last, stream = chunk, running.stream
        now, request_id = self._clock.now(), stream.request.id
        if stream.put(chunk, now):
            self._scheduler.started(request_id, now)
            self._bus.publish(
                FirstToken(t=now, request_id=request_id, cached_tokens=chunk.cached_tokens)
            )
        if chunk.token_ids:
            self._scheduler.emitted(request_id, len(chunk.token_ids))
            self._bus.publish(TokensEmitted(t=now, request_id=request_id, n=len(chunk.token_ids)))

    def _leave(self, running: _Running, task: asyncio.Task[None]) -> None:
        stream, last, failure = running.stream, running.last, running.failure
        if task.cancelled() and last.finish_reason in (None, "error"):
            last, failure = Chunk(finish_reason=running.ending), running.told
        elif failure is not None:
            last = Chunk(finish_reason="error")
        del self._running[stream.request.id]
        complete = last.finish_reason in ("stop", "length")
        self._scheduler.finish(stream.request.id, self._clock.now(), complete)
        self._tell.ended(stream, last, failure)
        self._left()
