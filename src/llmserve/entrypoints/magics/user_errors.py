"""What a user sees instead of a traceback: one red line, in a cell that failed."""

from __future__ import annotations

_RED, _PLAIN = "\x1b[31m", "\x1b[0m"


class UserError(Exception):
    """Something that the user can mend. Its message is the whole of what is shown."""

    def _render_traceback_(self) -> list[str]:
        return [f"{_RED}llmserve: {' '.join(str(self).split())}{_PLAIN}"]


class Interrupted(KeyboardInterrupt):
    """The user's own interrupt, with what became of the work."""

    def _render_traceback_(self) -> list[str]:
        return [f"{_RED}Interrupted: {self}{_PLAIN}"]
