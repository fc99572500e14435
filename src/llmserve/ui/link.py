"""What a page has been sent, and whether it still listens. Pure: it sends nothing itself.

A page says hello, is sent a snapshot, then deltas, each with the next sequence number, and
acknowledges. Where it finds a gap it says hello again. A page that acknowledges nothing for
`PATIENCE_S` (a closed lid, a tab gone) is sent nothing until it says hello.
"""

from __future__ import annotations

from typing import Literal

PATIENCE_S = 2.0


class Link:
    def __init__(self) -> None:
        self.seq = 0
        self.position = 0
        """Rows of the series that the page has, counted from the first ever."""
        self._listening = False
        self._wants_all = False
        self._heard = 0.0

    def hello(self, now: float) -> None:
        self._listening = self._wants_all = True
        self._heard = now

    def acknowledged(self, seq: int, now: float) -> None:
        if seq <= self.seq:
            self._heard = now

    def bye(self) -> None:
        self._listening = False

    def listening(self, now: float) -> bool:
        return self._listening and now - self._heard <= PATIENCE_S

    def due(self, oldest: int, now: float) -> Literal["snapshot", "delta", "nothing"]:
        """What to send now; `oldest` is the position of the first row still kept."""
        if not self.listening(now):
            self._listening = False
            return "nothing"
        return "snapshot" if self._wants_all or self.position < oldest else "delta"

    def sent(self, position: int) -> int:
        """Note that all rows before `position` go out now; the message's sequence number."""
        self._wants_all = False
        self.position = position
        self.seq += 1
        return self.seq
