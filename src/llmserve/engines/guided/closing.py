"""The shortest way out of a grammar: tokens that end a reply from wherever it stands.

Found greedily, so it may be longer than the very shortest. It always ends: what has been chosen
often is chosen less.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

MOST_STEPS = 1_000
"""Choices on one way out; what the grammar forces is none."""
MOST_TOKENS = 65_536
"""Of one way out."""
_SLICE = 2_048
_LONG_S = 0.5
"""What is forced is taken in slices, for so long: many levels of objects make each token slow."""

_FILLER = "x"
"""Where it may come the reply stands within a string, or in text without any form."""
_WITHIN = {'"': (0.0, 0.05), _FILLER: (0.5, 0.3)}
_OUTSIDE = {"}": (0.0, 0.05), "]": (0.5, 0.05), '"': (1.0, 0.05)} | {
    char: (1.5 + place / 4, 2.0) for place, char in enumerate(",01tfn[{")
}
"""What a character costs at its first use, and what each further use adds: a reply of many strings
needs many quotes."""
_OTHER = (8.0, 2.0)
_LOOKS = 2
"""Times on one way out that each character is tried for one that ends a text, where its quote may
not come: of a pattern that wants a full stop."""
_SEVERAL = 64
"""Tokens looked at where none of a single character may come."""


class DeadEnd(ValueError):
    """No text that fits the grammar is left."""


class Exits:
    """Finds ways out for one tokenizer of llguidance's."""

    def __init__(self, tokenizer: Any) -> None:
        self._chars: dict[int, str] = {}
        for char in map(chr, range(0x20, 0x7F)):
            ids = tokenizer.greedy_tokenize(char)
            if len(ids) == 1:
                self._chars.setdefault(ids[0], char)
        self._quote = next((id for id, char in self._chars.items() if char == '"'), None)
        self._ends = {*tokenizer.eos_tokens}
        self._looks = 0

    def find(
        self,
        matcher: Any,
        *,
        most: int = MOST_TOKENS,
        some: bool = False,
        steps: int = MOST_STEPS,
    ) -> list[int] | None:
        """Tokens after which the reply may end; None where they are more than `most`, or hard to
        find. DeadEnd where there are none. The matcher stays as it is. `some`: one token at
        least, where the grammar allows any."""
        matcher = matcher.deep_copy()
        path: list[int] = []
        used: Counter[int] = Counter()
        self._looks = _LOOKS
        for _ in range(steps):
            if matcher.is_accepting() and (path or not some):
                return path
            step = matcher.compute_ff_tokens() or self._choose(matcher, used)
            if not step and matcher.is_accepting():
                return path
            taken = _take(matcher, step[: most + 1])
            if not step or taken is False:
                raise DeadEnd(_reason(matcher))
            path += step
            if taken is None or len(path) > most:
                return None
        return None

    def _choose(self, matcher: Any, used: Counter[int]) -> list[int]:
        mask = matcher.compute_bitmask()
        allowed = {id: char for id, char in self._chars.items() if mask[id >> 3] >> (id & 7) & 1}
        costs = _WITHIN if _FILLER in allowed.values() else _OUTSIDE
        if not allowed:
            bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")
            found = [id for id in np.flatnonzero(bits).tolist() if id not in self._ends]
            allowed = dict.fromkeys(found[:_SEVERAL], "")

        if costs is _WITHIN and self._quote not in allowed and self._looks > 0:
            self._looks -= 1
            if (ending := self._ending(matcher, allowed)) is not None:
                return [ending]

        def cost(id: int) -> float:
            first, more = costs.get(allowed[id], _OTHER)
            return first + more * used[id]

        chosen = min(allowed, key=cost, default=None)
        if chosen is None:
            return []
        used[chosen] += 1
        return [chosen]

    def _ending(self, matcher: Any, allowed: Iterable[int]) -> int | None:
        """A character behind which the reply, or its quote, may end."""
        for id in allowed:
            ahead = matcher.deep_copy()
            if ahead.consume_token(id) and (ahead.is_accepting() or self._may_close(ahead)):
                return id
        return None

    def _may_close(self, matcher: Any) -> bool:
        quote = self._quote
        return quote is not None and bool(matcher.validate_tokens([quote]))


def _take(matcher: Any, tokens: list[int]) -> bool | None:
    """Whether the grammar takes them; None where there was no time to take them all."""
    begun = time.monotonic()
    for place in range(0, len(tokens), _SLICE):
        if not matcher.consume_tokens(tokens[place : place + _SLICE]):
            return False
        if time.monotonic() - begun > _LONG_S:
            return None
    return True


def _reason(matcher: Any) -> str:
    said = "".join(matcher.get_error().splitlines()[:1])
    if "ff_tokens" in said:
        return "the text that it forces has no end"
    return said if " " in said else "no text fits it"
