"""A job under way as a figure in its cell, redrawn at most once a second."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from llmserve.bench.run.job import State
from llmserve.plots.live_figure import LiveFigure, shown, sketch

EVERY_S = 1.0
_KEPT = 300
_TITLE = "The load as it goes"


class LiveThroughput:
    """Tokens per second over requests under way; no more than the newest five minutes.

    Where there is no notebook nothing is drawn, and the progress bar must do.
    """

    def __init__(
        self, state: Callable[[], State], now: Callable[[], float],
        update: Callable[[LiveFigure], None] | None = None,
    ) -> None:  # fmt: skip
        self._state, self._now = state, now
        self._began = self._drawn = now()
        self._tokens = 0
        self._points: deque[tuple[float, float, float]] = deque(maxlen=_KEPT)
        self._words = ""
        self._runs: deque[tuple[float, str]] = deque(maxlen=_KEPT)
        self._update = shown(self._sketch()) if update is None else update

    def watch(self) -> None:
        """To be called often, in the thread of the cell."""
        now = self._now()
        passed = now - self._drawn
        if passed < EVERY_S:
            return
        state = self._state()
        rate = max(0, state.tokens - self._tokens) / passed
        if state.words != self._words:
            self._words = state.words
            self._runs.append((self._drawn - self._began, state.words))
        self._drawn, self._tokens = now, state.tokens
        self._points.append((now - self._began, rate, float(state.running)))
        self._update(self._sketch())

    def _sketch(self) -> LiveFigure:
        at = [t for t, _, _ in self._points]
        panels = {
            "generated tokens/s": {"": (at, [rate for _, rate, _ in self._points])},
            "requests under way": {"": (at, [running for _, _, running in self._points])},
        }
        start = at[0] if len(at) == _KEPT else 0.0
        return sketch(_TITLE, panels, x="seconds", start=start, marks=dict(self._runs))
