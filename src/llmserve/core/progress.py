"""Telling who waits in a cell or at a terminal that it goes on, from the second second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from llmserve.core.quantities import duration, moment

SHOWN_AFTER_S = 2.0
_TOLD: ContextVar[bool] = ContextVar("llmserve_wait_told", default=False)


class ProgressLine(Protocol):
    """One line of text that can be written anew."""

    def write(self, text: str) -> None: ...

    def end(self) -> None: ...


class Waiting:
    """Call it now and then; a wait that is over sooner than that shows nothing."""

    def __init__(
        self, what: str | Callable[[], str], find: Callable[[], ProgressLine | None] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """what: as "starting vllm", or what gives it anew each second. find: the line to write on,
        None where nobody would read it."""
        self._what, self._find, self._now = what, find or line, now
        self._began = now()
        self._line: ProgressLine | None = None
        self._told = -1

    def __call__(self) -> None:
        seconds = int(self._now() - self._began)
        if seconds < SHOWN_AFTER_S or seconds == self._told:
            return
        if self._told < 0:
            self._line = self._find()
        self._told = seconds
        if self._line is not None:
            self._line.write(f"{self._words()} … {moment(seconds)}")

    def end(self, outcome: str) -> None:
        """outcome: as "ready" or "failed"; says also how long it took, where anything was shown."""
        if self._line is not None:
            took = self._now() - self._began
            self._line.write(f"{self._words()}: {outcome} after {duration(took)}")
            self._line.end()

    def _words(self) -> str:
        return self._what if isinstance(self._what, str) else self._what()


@contextmanager
def told_already() -> Iterator[None]:
    """Who waits within it sees a line of the caller's own."""
    token = _TOLD.set(True)
    try:
        yield
    finally:
        _TOLD.reset(token)


def line() -> ProgressLine | None:
    """The cell's output in a notebook, else standard error where that is a terminal. None where
    nobody would read it, or another tells already."""
    if _TOLD.get():
        return None
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is not None:
        return _CellLine()
    return _TerminalLine() if sys.stderr.isatty() else None


class _CellLine:
    def __init__(self) -> None:
        self._handle: object = None

    def write(self, text: str) -> None:
        from IPython.display import Pretty, display

        if self._handle is None:
            self._handle = display(Pretty(text), display_id=True)
        else:
            self._handle.update(Pretty(text))  # type: ignore[attr-defined]  # IPython is untyped

    def end(self) -> None:
        pass


class _TerminalLine:
    def write(self, text: str) -> None:
        sys.stderr.write(f"\r{text}\x1b[K")
        sys.stderr.flush()

    def end(self) -> None:
        sys.stderr.write("\n")
