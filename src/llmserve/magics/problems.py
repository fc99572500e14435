"""What a user sees instead of a traceback: one red line, in a cell that failed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_RED, _PLAIN = "\x1b[31m", "\x1b[0m"
_MOST_TOLD = 14


class Problem(Exception):
    """Something that the user can mend. Its message is the whole of what is shown."""

    def _render_traceback_(self) -> list[str]:
        return [f"{_RED}llmserve: {' '.join(str(self).split())}{_PLAIN}"]


class Interrupted(KeyboardInterrupt):
    """The user's own interrupt, with what became of the work."""

    def _render_traceback_(self) -> list[str]:
        return [f"{_RED}Interrupted: {self}{_PLAIN}"]


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or what there is, where that is little enough to read."""
    words = sorted(known)
    begun = [each for each in words if word and each.startswith(word)]
    near = begun or difflib.get_close_matches(word, words, n=1, cutoff=0.7)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there is {', '.join(words)}" if len(words) <= _MOST_TOLD else ""
