"""Stop strings in a reply that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Ends a text before the first stop string that is completed, however the text is cut.

    What may yet become a stop string is kept back, so nothing has to be unsaid.
    """

    def __init__(self, stops: Sequence[str], *, included: bool = False) -> None:
        """included: the text ends behind the stop string, and not before it."""
        self._stops = tuple(stops)
        self._included = included
        self._tail = ""

    def push(self, piece: str) -> tuple[str, str | None]:
        """The text that is certain now, and the stop string that ended it, if one did."""
        text = self._tail + piece
        found = [(at + len(s), at, s) for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            end, at, stop = min(found)
            self._tail = ""
            return text[: end if self._included else at], stop
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        certain = len(text) - kept
        self._tail = text[certain:]
        return text[:certain], None

    def rest(self) -> str:
        """Return the text kept back, when the reply has ended otherwise."""
        tail, self._tail = self._tail, ""
        return tail


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
