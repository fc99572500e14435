"""A reply as it grows, and how much of it a page has. Pure: times come in as arguments."""

from __future__ import annotations

from dataclasses import dataclass

from llmserve.core.types import Chunk

WAITING = "waiting"
RUNNING = "running"
Mark = tuple[int, int, str]
"""Characters, tokens and state that a page knows of one copy."""


@dataclass(frozen=True, slots=True)
class PageState:
    """How much of a playground run one page has."""

    run: int
    copies: tuple[Mark, ...]
    words: str
    load: dict[str, object] | None


class Copy:
    """One of the copies of a prompt. Its text is bounded by the request's max_tokens."""

    def __init__(self) -> None:
        self._text = ""
        self._tokens = 0
        self._first: tuple[float, int] | None = None
        """Seconds since the arrival at the first tokens, and how many they were."""
        self._last_s = 0.0
        self.state = WAITING

    @property
    def mark(self) -> Mark:
        return len(self._text), self._tokens, self.state

    @property
    def ended(self) -> bool:
        return self.state not in (WAITING, RUNNING)

    def take(self, chunk: Chunk, age_s: float) -> None:
        """`age_s`: seconds since the request's arrival. What comes after the end is passed over."""
        if self.ended:
            return
        self._text += chunk.text
        if chunk.token_ids:
            self._tokens += len(chunk.token_ids)
            self._first = self._first or (age_s, len(chunk.token_ids))
            self._last_s, self.state = age_s, RUNNING

    def end(self, state: str) -> None:
        """Once; a second end changes nothing."""
        if not self.ended:
            self.state = state

    def since(self, number: int, mark: Mark) -> list[object] | None:
        """Number, text to add, tokens, TTFT in ms, tokens/s, state; None where nothing is new."""
        if mark == self.mark:
            return None
        ttft_ms = None if self._first is None else round(1e3 * self._first[0], 1)
        added = self._text[mark[0] :]
        return [number, added, self._tokens, ttft_ms, self._rate(), self.state]

    def _rate(self) -> float | None:
        """Tokens after the first ones, per second."""
        if self._first is None or self._last_s <= self._first[0]:
            return None
        return round((self._tokens - self._first[1]) / (self._last_s - self._first[0]), 1)
