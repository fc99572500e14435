"""What the pages of one view have been sent, and which still listen. Pure: it sends nothing itself.

A page says hello, is sent a snapshot, then deltas, each with the next sequence number, and
acknowledges. Where it finds a gap it says hello again. A page that acknowledges nothing for
`PATIENCE_S` (a closed lid, a tab gone) is sent nothing until it says hello. Jupyter delivers
what is sent to all pages that show the view: one sequence, which goes on while any listens.
"""

from __future__ import annotations

from typing import Literal

PATIENCE_S = 2.0
GONE_S = 10.0
"""A page silent for so long does not only draw, or wait for its machine: it is gone."""


class PageLink:
    def __init__(self) -> None:
        self.seq = 0
        self.position = 0
        """Rows of the series that the page has, counted from the first ever."""
        self._wants_all = False
        self._heard: dict[str, float] = {}  # pages that listen, and when each was last heard

    def hello(self, now: float, page: str = "") -> None:
        self._wants_all = True
        self._heard[page] = now

    def acknowledged(self, seq: int, now: float, page: str = "") -> None:
        if seq <= self.seq and self.listening(now):  # too late, only a hello makes sure of all
            self._heard[page] = now

    def bye(self, page: str = "") -> None:
        self._heard.pop(page, None)

    def listening(self, now: float) -> bool:
        """Whether any page listens."""
        return any(now - t <= PATIENCE_S for t in self._here(now).values())

    def gone(self, now: float) -> bool:
        """Whether there is no page any more, not even one that may only be slow."""
        return not self._here(now)

    def _here(self, now: float) -> dict[str, float]:
        self._heard = {page: t for page, t in self._heard.items() if now - t <= GONE_S}
        return self._heard

    def due(self, oldest: int, now: float) -> Literal["snapshot", "delta", "nothing"]:
        """Return what to send now; `oldest` is the position of the first row still kept."""
        if not self.listening(now):
            return "nothing"
        return "snapshot" if self._wants_all or self.position < oldest else "delta"

    def sent(self, position: int) -> int:
        """Note that all rows before `position` go out now; the message's sequence number."""
        self._wants_all = False
        self.position = position
        self.seq += 1
        return self.seq
