"""The only sources of time: the machine's monotonic clock, and a virtual one that jumps.

All of the package awaits through asyncio, so virtual time is a property of the event loop: a loop
whose selector never waits but moves the clock to the next timer. An hour of simulated traffic
then takes as long as its computation, and every sleep ends exactly when it should.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import selectors
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    def now(self) -> float:
        """Seconds; only differences mean anything."""
        ...

    async def sleep_until(self, when: float) -> None: ...


class MonotonicClock:
    """CLOCK_MONOTONIC, one for all processes of the machine; also the time of asyncio's loop."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep_until(self, when: float) -> None:
        await asyncio.sleep(max(0.0, when - time.monotonic()))


class VirtualClock:
    """Time that passes only when everything waits. `run` runs a coroutine in it."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    async def sleep_until(self, when: float) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        timer = loop.call_at(when, _resolve, waiter)
        try:
            await waiter
        finally:
            timer.cancel()

    def advance(self, seconds: float) -> None:
        """For tests of rules that take `now`: no loop is needed."""
        self._now += seconds

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run `main` to its end on a loop of this clock; works inside a notebook cell too.

        Raises RuntimeError where everything waits and no timer is set (a deadlock).
        """
        with ThreadPoolExecutor(1, "virtual-time") as pool:  # a cell's own thread has a loop
            return pool.submit(self._run, main).result()

    def _run(self, main: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=lambda: _VirtualLoop(self)) as runner:
            return runner.run(main)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Timer(asyncio.TimerHandle):
    """Of timers of one time the first that was set fires first; asyncio promises no order."""

    __slots__ = ("number",)
    number: int

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, _Timer):
            return NotImplemented
        return (self.when(), self.number) < (other.when(), other.number)


class _JumpingSelector(selectors.SelectSelector):
    """Never waits: it moves the clock to the next timer, if it was asked to wait."""

    loop: _VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("virtual time: everything waits and no timer is set")
        if not ready and timeout:
            self.loop.jump()
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    _scheduled: list[_Timer]  # asyncio's own heap; a cancelled timer is never its first here

    def __init__(self, clock: VirtualClock) -> None:
        selector = _JumpingSelector()
        super().__init__(selector)
        selector.loop = self
        self._virtual = clock
        self._numbers = itertools.count()
        self._arrive(clock.now())

    def time(self) -> float:
        return self._virtual.now()

    def jump(self) -> None:
        """Make it the very time of the next timer: no sum of waits, which would be rounded."""
        self._arrive(self._scheduled[0].when())

    def call_at(  # type: ignore[override]  # typeshed's has TypeVarTuple
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        timer.number = next(self._numbers)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # type: ignore[attr-defined]  # as asyncio's: it counts the cancelled
        return timer

    def _arrive(self, now: float) -> None:
        self._virtual._now = now
        self._clock_resolution = math.ulp(now)  # what is due now fires, and nothing before its time
