"""A job under way as a figure in its cell, redrawn at most once a second."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from llmserve.bench.job import State
from llmserve.figures import Figure, lines, shown

EVERY_S = 1.0
_KEPT = 300


class Live:
    """Tokens per second and requests under way, as they go; no more than the newest five minutes.

    Where there is no notebook nothing is drawn, and the progress bar must do.
    """

    def __init__(
        self, state: Callable[[], State], now: Callable[[], float],
        update: Callable[[Figure], None] | None = None,
    ) -> None:  # fmt: skip
        self._state, self._now = state, now
        self._update = shown() if update is None else update
        self._began = self._drawn = now()
        self._tokens = 0
        self._points: deque[tuple[float, float, float]] = deque(maxlen=_KEPT)

    def watch(self) -> None:
        """To be called often, in the thread of the cell."""
        now = self._now()
        passed = now - self._drawn
        if passed < EVERY_S:
            return
        state = self._state()
        rate = max(0, state.tokens - self._tokens) / passed
        self._drawn, self._tokens = now, state.tokens
        self._points.append((now - self._began, rate, float(state.running)))
        self._update(self._figure(state.words))

    def _figure(self, words: str) -> Figure:
        at, rates, running = ([*column] for column in zip(*self._points, strict=True))
        drawn = {"tokens/s": (at, rates), "requests under way": (at, running)}
        return lines(words, drawn, x="seconds", y="tokens/s, requests", picture=False)
