"""Putting things on the page: text for terminals, HTML for notebooks, one line that stays alive."""

from __future__ import annotations

import contextvars
import html
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from llmserve.core.clock import MonotonicClock
from llmserve.core.progress import told_already
from llmserve.core.quantities import moment

Bundle = Mapping[str, str]
Update = Callable[[Bundle], None]


def show(bundle: Bundle) -> Update:
    """Display it, and return the way to change what is displayed."""
    from IPython.display import display

    handle: Any = display(dict(bundle), raw=True, display_id=True)

    def update(bundle: Bundle) -> None:
        if handle is not None:  # None outside a shell
            handle.update(dict(bundle), raw=True)

    return update


def note(text: str) -> Bundle:
    """A quiet line."""
    return {
        "text/plain": text,
        "text/html": f'<span style="opacity:.75">{html.escape(text)}</span>',
    }


class Elapsed:
    """A line that shows at once and counts the seconds while the block computes.

    The count is drawn from a thread of its own, for the cell's own thread is busy waiting; it
    updates one display that belongs to the cell, and has ended before the block is left.
    """

    def __init__(self, text: str, *, after_s: float = 2.0, every_s: float = 1.0) -> None:
        self._text = text
        self._after_s = after_s
        self._every_s = every_s
        self._over = threading.Event()
        self._told = told_already()

    def __enter__(self) -> Self:
        self.update = show(note(f"{self._text} …"))
        run = contextvars.copy_context().run  # the cell that output belongs to is in the context
        self._thread = threading.Thread(
            target=run, args=(self._count,), name="llmserve-elapsed", daemon=True
        )
        self._told.__enter__()
        try:
            self._thread.start()
        except BaseException:  # an interrupt: the block is not entered, so nothing would end it
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        self._thread.join()
        if kind is not None:
            self.update(note(f"{self._text}: not done."))

    def _end(self) -> None:
        self._over.set()
        self._told.__exit__(None, None, None)

    def _count(self) -> None:
        clock = MonotonicClock()
        began, wait = clock.now(), self._after_s
        while not self._over.wait(wait):
            self.update(note(f"{self._text} … {moment(round(clock.now() - began))}"))
            wait = self._every_s
