"""A progress line for a long wait in a cell or at a terminal: its seconds so far, and its end."""

from __future__ import annotations

import contextvars
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, Self

from llmserve.core.quantities import duration, moment

SHOWN_AFTER_S = 2.0
TICK_S = 0.25
_SHOWN: ContextVar[bool] = ContextVar("llmserve_wait_shown", default=False)


class ProgressLine(Protocol):
    """One line of text that can be written anew."""

    def write(self, text: str) -> None: ...

    def end(self) -> None: ...


class Waiting:
    """Reports a wait each time it is called; a wait that is over sooner than that shows nothing."""

    def __init__(
        self, what: str | Callable[[], str], find: Callable[[], ProgressLine | None] | None = None,
        now: Callable[[], float] = time.monotonic, *, after_s: float = SHOWN_AFTER_S,
    ) -> None:  # fmt: skip
        """what: as "starting vllm", or what gives it anew each second. find: the line to write on,
        None where nobody would read it."""
        self._what, self._find, self._now = what, find or line, now
        self._after_s = after_s
        self._began = now()
        self._line: ProgressLine | None = None
        self._shown_s = -1

    def __call__(self) -> None:
        taken = self._now() - self._began
        seconds = int(taken)
        if taken < self._after_s or seconds == self._shown_s:
            return
        if self._shown_s < 0:
            self._line = self._find()
        self._shown_s = seconds
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


class Ticking:
    """Calls a Waiting from a thread of its own while a block keeps the caller's busy, and has
    ended before the block is left. Beside it no second line shows the same wait."""

    def __init__(self, waiting: Waiting, every_s: float = TICK_S) -> None:
        self._waiting, self._every_s = waiting, every_s
        self._over = threading.Event()
        self._shown = progress_shown()

    def __enter__(self) -> Self:
        run = contextvars.copy_context().run  # the cell that output belongs to is in the context
        self._thread = threading.Thread(
            target=run, args=(self._tick,), name="llmserve-elapsed", daemon=True
        )
        self._shown.__enter__()
        try:
            self._thread.start()
        except BaseException:  # an interrupt: the block is not entered, so nothing would end it
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        self._thread.join()

    def _end(self) -> None:
        self._over.set()
        self._shown.__exit__(None, None, None)

    def _tick(self) -> None:
        while not self._over.wait(self._every_s):
            self._waiting()


@contextmanager
def progress_shown() -> Iterator[None]:
    """The caller shows a progress line of its own meanwhile, so that no other appears."""
    token = _SHOWN.set(True)
    try:
        yield
    finally:
        _SHOWN.reset(token)


def line() -> ProgressLine | None:
    """The cell's output in a notebook, else standard error where that is a terminal. None where
    nobody would read it, or another line shows the wait already."""
    if _SHOWN.get():
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
