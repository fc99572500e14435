"""When each of many streamed answers sends its next event.

An event costs many times what a token in it does. So while few stream, each token leaves at once;
while so many stream that their events would keep the loop busy, each answer sends one every so
often, with what has come since. The first token of an answer never waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

SHARE = 0.25
"""Of the loop's time, what events may take before they are sent less often."""
_FIRST_COST_S = 30e-6
"""Of an event, before any was measured."""
_WEIGHT = 0.1
"""Of the newest measurement in their average."""
_EARLY = 0.125
"""Of the interval: who is due so soon is sent along, so that a timer serves many."""


class Paced(Protocol):
    """An answer that is streamed."""

    sent_at: float
    """When it was last sent something, on the loop's clock."""

    def send_now(self) -> bool:
        """Send what has come; False where there was nothing to send, or no way to."""
        ...


class Pacer:
    """One loop's streamed answers. `open` is how many there are."""

    def __init__(self, longest_s: Callable[[], float]) -> None:
        """longest_s: the most that text is held back for; 0 for an event per token."""
        self.open = 0
        self._longest_s = longest_s
        self._cost_s = _FIRST_COST_S
        self._due: list[Paced] = []
        self._later: list[Paced] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def interval_s(self) -> float:
        """At least so long lies between two events of one answer."""
        return min(self._longest_s(), self.open * self._cost_s / SHARE)

    @property
    def joins(self) -> bool:
        """Whether what has come for an answer since its last event is one event."""
        return self._longest_s() > 0

    def note(self, answer: Paced) -> None:
        """The answer has news; call it once until it was sent."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._turn)
        self._due.append(answer)

    def _turn(self) -> None:
        due, self._due = self._due, []
        self._send(due)

    def _ring(self) -> None:
        self._timer = None
        later, self._later = self._later, []
        self._send(later)

    def _send(self, answers: list[Paced]) -> None:
        loop = asyncio.get_running_loop()
        now, interval = loop.time(), self.interval_s
        if interval:
            latest = now - interval * (1 - _EARLY)
            ready = [one for one in answers if one.sent_at <= latest]
            if len(ready) < len(answers):
                self._later += [one for one in answers if one.sent_at > latest]
        else:
            ready = answers
        began, sent = perf_counter(), 0
        for one in ready:
            one.sent_at = now
            sent += one.send_now()
        if sent:
            self._cost_s += _WEIGHT * ((perf_counter() - began) / sent - self._cost_s)
        if self._later and self._timer is None:
            first = min([one.sent_at for one in self._later]) + interval
            self._timer = loop.call_at(first, self._ring)
