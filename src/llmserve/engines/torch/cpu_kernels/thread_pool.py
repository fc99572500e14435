"""A pool of threads that do one piece of work together, again and again, and are parked in between.

No thread waits for ever: when one fails, `abandon` has the others give up, and the pool is broken
from then on, for nothing says how far they were.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

Work = Callable[[int], int]
"""Of the thread with this number: 0 when it did its part, anything else when it gave up."""


class ThreadPool:
    def __init__(
        self, threads: int, work: Work, abandon: Callable[[], None], patience_s: float
    ) -> None:
        """`patience_s` is how long one thread may be done and another not."""
        self._work, self._abandon, self._patience_s = work, abandon, patience_s
        self._done = threading.Semaphore(0)
        self._starts = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._failure: BaseException | None = None
        self._stopped = False
        self._threads: list[threading.Thread] = []
        for number, start in enumerate(self._starts, 1):
            thread = threading.Thread(
                target=self._serve, args=(number, start), name=f"fused-{number}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # the system gives no more of them
                self.stop()
                raise
            self._threads.append(thread)

    def run(self) -> None:
        """Returns when all have done their part, the caller's thread being number 0. RuntimeError
        when one has failed, now or before, or `stop` was called."""
        if self._stopped:
            raise RuntimeError("the fused kernels have been stopped")
        if self._failure is None:
            try:
                for start in self._starts:
                    start.release()
                self._do(0)
            except BaseException as error:  # an interrupt: the others are under way
                self._fail(error)
                raise
            for _ in self._starts:
                if not self._done.acquire(timeout=self._patience_s):
                    self._fail(TimeoutError("a thread does not come back"))
        if self._stopped:
            raise RuntimeError("the fused kernels were stopped in the middle of a step")
        if self._failure is not None:
            raise RuntimeError(f"the fused kernels failed: {self._failure}") from self._failure

    def stop(self) -> None:
        """From any thread, at any time: a step under way is given up."""
        self._stopped = True
        self._abandon()
        for start in self._starts:
            start.release()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(self._patience_s)

    def _serve(self, number: int, start: threading.Semaphore) -> None:
        while True:
            start.acquire()
            if self._stopped:
                self._done.release()  # a step may have begun
                return
            self._do(number)
            self._done.release()

    def _do(self, number: int) -> None:
        try:
            if self._work(number) != 0:
                raise TimeoutError("a thread waited for the others in vain")
        except Exception as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """The first failure is the one reported: the others follow from it."""
        if self._failure is None:
            self._failure = error
        self._abandon()
