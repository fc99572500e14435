"""Log-probabilities of a prompt's tokens, as the steps that compute the prompt bring them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from llmserve.core.types import PromptLogprobs, TokenLogprob
from llmserve.engines.torch.model.transfer import fetch, upload

AT_ONCE = 2**22
"""Logits whose log-probabilities are in memory at the same time."""


class PromptScores:
    """One request's. Each position is scored once, however often its row is computed."""

    def __init__(self, prompt: Sequence[int], top: int) -> None:
        """top: how many of the likeliest tokens are wanted beside each."""
        self._prompt = prompt
        self._top = top
        self._found: list[TokenLogprob | None] = [None]

    @property
    def found(self) -> PromptLogprobs:
        return tuple(self._found)

    def wanted(self, start: int, tokens: int) -> range:
        """Those of these positions whose logits are still wanted. The last token foretells none."""
        first = max(start, len(self._found) - 1)
        return range(first, max(first, min(start + tokens, len(self._prompt) - 1)))

    def add(self, logits: Tensor) -> None:
        """Take the logits (float32) of the next positions."""
        block = max(1, AT_ONCE // logits.shape[-1])
        for first in range(0, logits.shape[0], block):
            self._add(logits[first : first + block])

    def _add(self, logits: Tensor) -> None:
        at = len(self._found)
        tokens = [*self._prompt[at : at + logits.shape[0]]]
        logprobs = logits.log_softmax(-1)
        own = logprobs.gather(-1, upload(tokens, logits.device)[:, None])
        ranks = (logprobs >= own).sum(-1)
        top = logprobs.topk(min(self._top, logits.shape[-1]), -1)
        columns = fetch(own[:, 0], ranks, *top)
        for token, logprob, rank, values, ids in zip(tokens, *columns, strict=True):
            likeliest = tuple(zip(ids, values, strict=True))
            self._found.append(TokenLogprob(token, logprob, likeliest, rank))
