"""One thread named `llmserve`, one event loop: the only bridge between a cell and serving.

The kernel's own loop is never used nor patched. A cell that sleeps, computes, raises or is
interrupted leaves this thread as it was, and nothing on it prints.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib
import importlib.util
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from llmserve.core.progress import TICK_S, Waiting

T = TypeVar("T")


class Runtime:
    """One thread with one event loop, started at once. `close` ends it; calls after that raise
    RuntimeError."""

    def __init__(self) -> None:
        self.loop = new_loop()
        self._lock = threading.RLock()  # the collector may submit in the midst of a submit
        self._stopped = self._ended = False
        self._thread = threading.Thread(target=self._main, name="llmserve", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # an interrupt: nobody will hold it, and so nobody would close it
            self._stop()
            raise

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def here(self) -> bool:
        """Whether the caller is on the loop's own thread, which must not wait for it."""
        return threading.current_thread() is self._thread

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run `work` on the loop, from any thread. Cancelling the future cancels the work.

        Either it is refused here or the future has an end, also while another thread closes.
        """
        if self._thread.is_alive():
            with self._lock:
                if not self._ended:
                    return asyncio.run_coroutine_threadsafe(work, self.loop)
        work.close()
        raise RuntimeError("this session is closed; start a new one")

    def call(
        self, work: Coroutine[Any, Any, T], timeout: float | None = None, *,
        progress: str | Callable[[], str] = "",
    ) -> T:  # fmt: skip
        """Run `work` and wait for it. An interrupt cancels `work` and nothing else.

        progress: what the caller sees after two seconds of waiting, as "starting torch".
        Raises TimeoutError after `timeout` seconds, RuntimeError when called on the loop itself.
        """
        if self.here:
            work.close()
            raise RuntimeError("already on the serving loop: await the async method instead")
        waiting = Waiting(progress) if progress else None
        outcome = "failed"
        future = self.submit(work)
        try:
            while waiting and not is_done(future, TICK_S):
                waiting()
            result = future.result(timeout)
            outcome = "done"
            return result
        except BaseException:
            future.cancel()
            raise
        finally:
            if waiting:
                waiting.end(outcome)

    def close(self) -> None:
        """Cancel what still runs, end the loop and the thread. Safe to call twice."""
        if self._thread.is_alive():
            self._stop()
            self._thread.join(10)

    def _stop(self) -> None:
        with self._lock:
            if not self._stopped:  # a second stop would cut short what `_main` does behind it
                self._stopped = True
                self.loop.call_soon_threadsafe(self.loop.stop)

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            with self._lock:
                self._stopped = self._ended = True
            self.loop.run_until_complete(_cancel_all())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed (all but Windows): a fifth of the kernel's CPU time
    per token was the loop's own."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop()
    made: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
    return made


async def _cancel_all() -> None:
    """Also what was submitted behind the stop, which has become a task one turn later: by now."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=5)


def is_done(future: concurrent.futures.Future[Any], within_s: float) -> bool:
    """Wait so long for it. Not by `concurrent.futures.wait`: an interrupt in it may leave the
    future locked, and with it the loop that is to set its result."""
    with contextlib.suppress(TimeoutError, concurrent.futures.CancelledError):
        future.exception(within_s)
    return future.done()
