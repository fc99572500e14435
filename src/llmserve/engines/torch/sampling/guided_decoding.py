"""Guided decoding: which tokens may come next in a structured output, by llguidance.

A reply ends where its grammar is complete and allows nothing more, so whatever the model, a reply
that ended by itself fits its schema; one cut short by max_tokens is a beginning of such a reply.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmserve.core.types import Structured
from llmserve.engines.torch.sampling.schemas import matcher


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
        self._vocab_size = vocab_size

    def open(self, structured: Structured) -> Matcher:
        """Return a matcher for one reply; ValueError where its schema cannot be followed."""
        return Matcher(matcher(structured, self._tokenizer), self._vocab_size)


class Matcher:
    """Tracks how far one reply has followed its schema."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def bits(self) -> bytes:
        """One bit for each token: whether it may come next."""
        found: bytes = self._matcher.compute_bitmask()
        return found

    def push(self, token: int) -> None:
        """Take a token; RuntimeError where the schema cannot be followed any more. Of some it
        shows only here, as of one whose alternatives are too many at once."""
        taken = self._matcher.consume_token(token)
        if not taken or self._matcher.is_error():
            reason = self._matcher.get_error().splitlines()[:1]
            raise RuntimeError(f"its schema cannot be kept to: {''.join(reason)}")

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())


def forbidden(matchers: Sequence[Matcher], vocab_size: int) -> Tensor:
    """For each matcher the tokens that may not come next, as `[matchers, vocabulary]`."""
    packed = np.frombuffer(b"".join(matcher.bits() for matcher in matchers), dtype=np.uint8)
    allowed = np.unpackbits(packed.reshape(len(matchers), -1), axis=1, bitorder="little")
    return torch.from_numpy(allowed[:, :vocab_size] == 0)
