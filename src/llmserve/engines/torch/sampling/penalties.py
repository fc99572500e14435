"""Applies penalties, biases and least lengths to logits, for all rows of a batch at once.

A request's tally holds the tokens whose logits it changes, each once, and is kept up token by
token. A step puts the tallies of its rows end to end and changes those logits in one go: no Python
per token, nothing over the whole vocabulary. A tally is in the memory of the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmserve.core.types import SamplingParams
from llmserve.engines.torch.model.transfer import upload

SMALLEST = 64


class TokenCounts:
    """One request's tokens with a penalty or a bias. Repetition counts prompt and reply, presence
    and frequency the reply alone, as in vLLM."""

    def __init__(self, params: SamplingParams, prompt: Iterable[int]) -> None:
        self._params = params
        self._counts: list[int] = []
        self._index: dict[int, int] = {}
        self.penalised = (
            params.repetition_penalty != 1
            or params.presence_penalty != 0
            or params.frequency_penalty != 0
        )
        self._ids: NDArray[np.int64] = np.zeros(SMALLEST, dtype=np.int64)
        self._changes: NDArray[np.float32] = np.zeros((2, SMALLEST), dtype=np.float32)
        for token, bias in params.logit_bias:
            at = self._place(token)  # before the table is named: it may be laid anew
            self._changes[1, at] = bias
        self._biases = self._changes[1, : len(self._counts)].copy()
        if params.repetition_penalty != 1:
            for token in prompt:
                at = self._place(token)
                self._changes[0, at] = params.repetition_penalty

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: len(self._counts)]

    @property
    def changes(self) -> NDArray[np.float32]:
        """Of each token the factor of its repetition, and what is added after it."""
        return self._changes[:, : len(self._counts)]

    def see(self, token: int) -> None:
        """Count a token of the reply."""
        if not self.penalised:
            return
        params, at = self._params, self._place(token)
        self._counts[at] += 1
        bias = float(self._biases[at]) if at < len(self._biases) else 0.0
        self._changes[0, at] = params.repetition_penalty
        self._changes[1, at] = (
            bias - params.frequency_penalty * self._counts[at] - params.presence_penalty
        )

    def _place(self, token: int) -> int:
        at = self._index.get(token)
        if at is None:
            at = self._index[token] = len(self._counts)
            self._counts.append(0)
            if at == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._changes = np.concatenate([self._changes, np.zeros_like(self._changes)], 1)
            self._ids[at] = token
            self._changes[:, at] = 1, 0
        return at


def apply_tallies(logits: Tensor, tallies: dict[int, TokenCounts]) -> None:
    """Change the logits of these rows in place."""
    rows, ids = _pairs({row: tally.ids for row, tally in tallies.items()}, logits.device)
    changes = np.concatenate([tally.changes for tally in tallies.values()], 1)
    factors, added = upload(torch.from_numpy(changes), logits.device)
    # by row and token, not by one flat number: an id beyond the vocabulary must not hit a neighbour
    its = logits[rows, ids]
    logits[rows, ids] = torch.where(its > 0, its / factors, its * factors) + added


def forbid(logits: Tensor, ends: dict[int, NDArray[np.int64]]) -> None:
    """These rows may not draw these tokens."""
    logits[_pairs(ends, logits.device)] = -math.inf


def _pairs(
    ids: dict[int, NDArray[np.int64]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Row and token of each, as two vectors."""
    sizes: Sequence[int] = [len(its) for its in ids.values()]
    pairs = np.stack([np.repeat([*ids], sizes), np.concatenate([*ids.values()])])
    rows, tokens = upload(torch.from_numpy(pairs), device)
    return rows, tokens
