"""Requests in the engine: one task each, from dispatch to the end that is published.

Cancelling a request's task is stopping its work; every end, good or bad, passes `_leave` once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from llmserve.core.clock import Clock
from llmserve.core.types import Chunk, FinishReason, ParamError
from llmserve.engines.base import Engine, EngineError, RequestFailed
from llmserve.scheduling.entry import Entry
from llmserve.scheduling.scheduler import Scheduler
from llmserve.serving.publisher import Publisher
from llmserve.serving.waiting import Handle

log = logging.getLogger(__name__)


class RunningRequests:
    """Runs dispatched requests. `died` is called when a request fails because the engine did,
    `left` after each end."""

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        clock: Clock,
        publisher: Publisher,
        *,
        died: Callable[[], None],
        left: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._clock = clock
        self._publisher = publisher
        self._died = died
        self._left = left
        self._moment: float | None = None
        """When the tokens came that this turn of the loop brings."""

    def run(self, entry: Entry) -> None:
        """Run a request that the scheduler has just dispatched."""
        self._publisher.dispatched(entry.id, self._clock.now())
        handle: Handle = entry.handle
        handle.task = asyncio.get_running_loop().create_task(self._run(entry, handle))
        # a task cancelled before its first step runs no `finally` of its own
        handle.task.add_done_callback(partial(self._leave, entry, handle))

    def cancel(
        self, request_id: str, ending: FinishReason = "abort", error: Exception | None = None
    ) -> bool:
        """Stop the work on it, and raise `error` to its client; False where it is not in the
        engine. Only the first call counts."""
        entry = self._scheduler.find(request_id)
        if entry is None or entry.waits:
            return False
        handle: Handle = entry.handle
        if not handle.stopped:
            handle.stopped, handle.ending, handle.stop_error = True, ending, error
            handle.task.cancel()
        return True

    async def drain(self, seconds: float, error: Exception) -> int:
        """Return when the engine has no request. Those that have not ended by themselves after
        `seconds` are ended with `error`; how many that were."""
        if seconds > 0 and (running := self._tasks()):
            await asyncio.wait(running.values(), timeout=seconds)
        left = self._tasks()
        for request_id in left:
            self.cancel(request_id, error=error)
        if left:
            await asyncio.wait(self._tasks().values(), timeout=5)
        await asyncio.sleep(0)  # their done callbacks publish the ends
        return len(left)

    def _tasks(self) -> dict[str, asyncio.Task[None]]:
        return {one.id: one.handle.task for one in self._scheduler.entries if not one.waits}

    async def _run(self, entry: Entry, handle: Handle) -> None:
        """One request's life in the engine; its end is published by `_leave`."""
        try:
            deliver = partial(self._deliver, entry.id, handle)
            await self._engine.generate(entry.request, deliver)
        except EngineError as error:
            handle.failure = error
            self._died()
        except ParamError as error:
            handle.failure = error
        except RequestFailed as error:
            handle.failure = EngineError(str(error))
        except Exception as error:
            log.exception("request %s failed in the engine", entry.id)
            handle.failure = EngineError(f"the engine failed on this request: {error!r}")

    def _deliver(self, request_id: str, handle: Handle, chunk: Chunk) -> None:
        """Once for each token. What comes in one turn of the loop has come at one moment."""
        now = self._moment
        if now is None:
            now = self._moment = self._clock.now()
            asyncio.get_running_loop().call_soon(self._moment_over)
        handle.last = chunk
        if handle.stream.put(chunk, now):
            self._scheduler.started(request_id, now)
            self._publisher.first_token(request_id, now, chunk.cached_tokens)
        if chunk.token_ids:
            tokens = len(chunk.token_ids)
            self._scheduler.emitted(request_id, tokens)
            self._publisher.emitted(request_id, now, tokens)

    def _moment_over(self) -> None:
        self._moment = None
        self._publisher.flush()

    def _leave(self, entry: Entry, handle: Handle, task: asyncio.Task[None]) -> None:
        last, failure = handle.last, handle.failure
        if task.cancelled() and last.finish_reason in (None, "error"):
            last, failure = Chunk(finish_reason=handle.ending), handle.stop_error
        elif failure is not None:
            last = Chunk(finish_reason="error")
        now = self._clock.now()
        self._scheduler.finish(entry.id, now, last.finish_reason in ("stop", "length"))
        handle.stream.end(last, now, failure)
        reason = last.finish_reason or "error"
        self._publisher.finished(entry.id, reason, handle.stream.usage, failure)
        self._left()
