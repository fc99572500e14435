"""Settings of the whole interpreter that serving needs, in force while any session serves.

Thread switching: the loop's thread gives up the GIL at every socket send and then waits a whole
switch interval (5 ms) behind a cell that computes: 32 streams fell from 10,300 to 350 tokens/s, and
50 µs brought them back. Such a cell pays a few per cent.

Collecting: beside torch and vLLM there are 660,000 objects, and a full collection of cyclic garbage
stopped all streams for 0.8 s, about once in 40,000 tokens. Nearly all that a token leaves behind is
gone before a collection that comes 70 times as rarely, so that none grows into a full one.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

SWITCH_INTERVAL_S = 5e-5
GC_THRESHOLD = 50_000
"""Objects made and not yet gone, before the collector looks at them; Python's own is 700."""
_GENERATIONS = (20, 10)

T = TypeVar("T")


class Setting(Generic[T]):
    """One setting: the first borrower remembers what it was, the last restores that, unless
    somebody else has set it meanwhile."""

    def __init__(self, read: Callable[[], T], write: Callable[[T], object]) -> None:
        self._read, self._write = read, write
        self._lock = threading.Lock()
        self._before: T | None = None
        self._ours: T | None = None
        self._users = 0

    def borrow(self, value: T, better: Callable[[T, T], bool]) -> None:
        """Set it to `value` where that is better than what is there."""
        with self._lock:
            self._users += 1
            before = self._read()
            if better(value, before):
                self._write(value)
                self._ours = self._read()
                self._before = before if self._before is None else self._before

    def give_back(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users or self._before is None:
                return
            if self._read() == self._ours:
                self._write(self._before)
            self._before = None


class WhileServing:
    """Borrows both settings at once; `release` gives them back, and is safe to call twice."""

    _switching: ClassVar = Setting(sys.getswitchinterval, sys.setswitchinterval)
    _collecting: ClassVar = Setting(gc.get_threshold, lambda values: gc.set_threshold(*values))

    def __init__(self, switch_interval_s: float | None, gc_threshold: int | None) -> None:
        """None leaves a setting alone. So is a collector that is off, or rarer than that."""
        self._release: list[Callable[[], None]] = []
        if switch_interval_s is not None:
            self._switching.borrow(switch_interval_s, lambda new, old: new < old)
            self._release.append(self._switching.give_back)
        if gc_threshold is not None:
            self._collecting.borrow(
                (gc_threshold, *_GENERATIONS), lambda new, old: 0 < old[0] < new[0]
            )
            self._release.append(self._collecting.give_back)

    def release(self) -> None:
        while self._release:
            self._release.pop()()
