"""A discrete event loop: callbacks by their time, without tasks, futures or a thread.

It goes through virtual time turn by turn as asyncio's loop does on a `VirtualClock`: a callback
asked for `soon` runs in the next turn, and timers of one time fire in the order in which they were
set. So what is written as callbacks here happens in the very order of the coroutines it stands for.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any

from llmserve.core.clock import VirtualClock

NEVER = float("inf")
Callback = Callable[..., object]


class AgendaTimer:
    """A callback at a time, which may be set anew or taken back."""

    __slots__ = ("args", "callback", "number", "queued", "when")

    def __init__(self, callback: Callback, args: tuple[Any, ...]) -> None:
        self.callback, self.args = callback, args
        self.when = NEVER
        self.number = 0
        self.queued = NEVER
        """The earliest time for which the agenda has it in its heap."""

    def __lt__(self, other: AgendaTimer) -> bool:
        return False  # only where one timer is in the heap twice

    def cancel(self) -> None:
        """Also where it is due in this very turn and was not called yet."""
        self.when, self.number = NEVER, 0

    def fire(self, number: int) -> None:
        if self.number == number:  # neither taken back nor set anew since it became due
            self.callback(*self.args)


class Agenda(VirtualClock):
    """What is to happen, and the time that it is."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__(start)
        self.stopped = False
        self._ready: deque[tuple[Callback, tuple[Any, ...]]] = deque()
        self._heap: list[tuple[float, int, AgendaTimer]] = []
        self._number = 0

    @property
    def quiet(self) -> bool:
        """Whether nothing more happens in this moment."""
        return not self._ready

    @property
    def horizon(self) -> float:
        """The time of the next timer."""
        heap = self._heap
        while heap:
            when, number, timer = heap[0]
            if timer.number == number and timer.when == when:
                return when
            heapq.heappop(heap)
            if timer.queued == when:
                timer.queued = NEVER
                if timer.when < NEVER:  # it was set to a later time meanwhile
                    self._push(timer)
        return NEVER

    def soon(self, callback: Callback, *args: Any) -> None:
        """Call it in the next turn."""
        self._ready.append((callback, args))

    def after(self, turns: int, callback: Callback, *args: Any) -> None:
        """Call it so many turns from now."""
        if turns > 1:
            self._ready.append((self.after, (turns - 1, callback, *args)))
        else:
            self._ready.append((callback, args))

    def at(self, when: float, callback: Callback, *args: Any) -> AgendaTimer:
        timer = AgendaTimer(callback, args)
        self.reset(timer, when)
        return timer

    def reset(self, timer: AgendaTimer, when: float) -> None:
        """Let a timer fire at another time than it was to, or once more."""
        self._number += 1
        timer.when, timer.number = when, self._number
        if when < timer.queued:
            self._push(timer)

    def jump(self, when: float) -> None:
        """Make it that time: nothing happens before it."""
        self._now = when

    def run_to_end(self) -> None:
        """Go on until `stopped`. RuntimeError where nothing is left to happen before."""
        ready, heap = self._ready, self._heap
        while not self.stopped:
            if not ready:
                when = self.horizon
                if when == NEVER:
                    raise RuntimeError("virtual time: everything waits and no timer is set")
                if when > self._now:
                    self._now = when
            while heap and heap[0][0] <= self._now and self.horizon <= self._now:
                _, number, timer = heapq.heappop(heap)
                timer.when = timer.queued = NEVER
                ready.append((timer.fire, (number,)))
            for _ in range(len(ready)):
                callback, args = ready.popleft()
                callback(*args)

    def _push(self, timer: AgendaTimer) -> None:
        timer.queued = timer.when
        heapq.heappush(self._heap, (timer.when, timer.number, timer))
