"""Guided decoding: which tokens may come next in a structured output, by llguidance.

A reply ends where its grammar is complete and allows nothing more, so whatever the model, a reply
that ended by itself fits its schema. Near max_tokens a drawn token stands only where the reply can
still end in time behind it, and else the shortest way out is taken: so one that the limit ends fits
its schema too, unless it had no room for any that does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmserve.core.types import ParamError, Structured
from llmserve.engines.guided.closing import DeadEnd, Exits
from llmserve.engines.guided.grammars import matcher

EARLY = 64
"""Tokens before the limit from which each drawn one is judged; twice the way out where that is
more."""
LOOK_EVERY = 32
"""Tokens after which the way out is measured before that, should it have grown."""
STEPS = 300
"""Choices of a way out that is looked for between two steps of the engine."""


class Grammars:
    """Makes matchers for one model's tokens."""

    def __init__(self, backend: Any, vocab_size: int, eos_ids: Iterable[int]) -> None:
        """Takes a tokenizers.Tokenizer; ValueError for another, or one that llguidance cannot."""
        from llguidance import LLTokenizer

        if not hasattr(backend, "to_str"):
            raise ValueError("a slow tokenizer does not give its tokens' bytes")
        self._tokenizer = LLTokenizer(
            backend.to_str(),
            n_vocab=max(vocab_size, backend.get_vocab_size()),
            eos_token=sorted(eos_ids) or None,
        )
        self._exits = Exits(self._tokenizer)
        self._ends = frozenset(self._tokenizer.eos_tokens)
        self._vocab_size = vocab_size

    def open(self, structured: Structured, max_tokens: int) -> Matcher:
        """Return a matcher for one reply; ValueError where its schema cannot be followed."""
        found = matcher(structured, self._tokenizer)
        return Matcher(found, self._vocab_size, self._exits, self._ends, max_tokens)


class Matcher:
    """Tracks how far one reply has followed its schema."""

    def __init__(
        self, matcher: Any, vocab_size: int, exits: Exits, ends: frozenset[int], max_tokens: int
    ) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._exits = exits
        self._ends = ends
        self._left = max_tokens
        self._way: list[int] | None = None
        """The shortest way out from here, where it was measured here."""
        self._next = max_tokens
        """With so many tokens left the way out is measured next."""

    def bits(self) -> bytes:
        """One bit for each token: whether it may come next."""
        found: bytes = self._matcher.compute_bitmask()
        return found

    def settle(self, token: int) -> int:
        """The token that comes next in place of a drawn one: another where the reply could not end
        in time behind it."""
        if self._left > self._next or token in self._ends:
            return token
        way = self._measure()
        if way is None:  # it cannot end in time; or how, is not to be found
            self._next = self._left - LOOK_EVERY
            return token
        behind = self._behind(token, way)
        if behind is None:
            return way[0] if way else min(self._ends)
        near = self._left <= max(EARLY, 2 * len(behind))
        self._next = self._left if near else self._left - LOOK_EVERY
        return token

    def _measure(self) -> list[int] | None:
        if self._way is None:
            try:
                self._way = self._exits.find(self._matcher, most=self._left, steps=STEPS)
            except DeadEnd:
                return None
        return self._way

    def _behind(self, token: int, way: list[int]) -> list[int] | None:
        """The way out behind a token; None where it is too long."""
        if way and token == way[0]:
            return way[1:]
        ahead = self._matcher.deep_copy()
        if not ahead.consume_token(token):
            return []  # `push` gives the reason
        try:
            return self._exits.find(ahead, most=self._left - 1, steps=STEPS)
        except DeadEnd:
            return None

    def push(self, token: int) -> None:
        """Take a token; ParamError where the schema cannot be followed any more. Of some it
        shows only here, as of one that spells a special token."""
        self._left -= 1
        self._way = self._way[1:] if self._way and token == self._way[0] else None
        taken = self._matcher.consume_token(token)
        if not taken or self._matcher.is_error():
            reason = self._matcher.get_error().splitlines()[:1]
            said = f"its schema cannot be kept to: {''.join(reason)}"
            raise ParamError("structured_outputs", said)

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())


def forbidden(matchers: Sequence[Matcher], vocab_size: int) -> Tensor:
    """For each matcher the tokens that may not come next, as `[matchers, vocabulary]`."""
    packed = np.frombuffer(b"".join(matcher.bits() for matcher in matchers), dtype=np.uint8)
    allowed = np.unpackbits(packed.reshape(len(matchers), -1), axis=1, bitorder="little")
    return torch.from_numpy(allowed[:, :vocab_size] == 0)
