"""Putting things on the page: text for terminals, HTML for notebooks, one line that stays alive."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from llmserve.core.progress import SHOWN_AFTER_S, TICK_S, Ticking, Waiting

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
    """A wait whose line shows at once; `update` then replaces it by what came of the wait."""

    def __init__(
        self, text: str, *, after_s: float = SHOWN_AFTER_S, every_s: float = TICK_S
    ) -> None:
        self._text = text
        self._ticking = Ticking(Waiting(text, lambda: self, after_s=after_s), every_s)

    def __enter__(self) -> Self:
        self.update = show(note(f"{self._text} …"))
        self._ticking.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ticking.__exit__(kind, error, trace)
        if kind is not None:
            self.update(note(f"{self._text}: not done."))

    def write(self, text: str) -> None:
        self.update(note(text))

    def end(self) -> None:
        """The line stays, for what comes next."""
