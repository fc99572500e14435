"""Steps of any width by kernels for few rows: as many calls as it takes, of about equal size."""

from __future__ import annotations

import torch
from torch import Tensor

from llmserve.engines.torch.kv.store import Place
from llmserve.engines.torch.model.flat_model import FewRows

EVEN = 8
"""Rows that a kernel takes at once: a block is a multiple of it."""


class RowBlocks:
    """Rows of one sequence may be in several blocks, for they come in the order of positions."""

    def __init__(self, few: FewRows, most: int) -> None:
        self.few, self._most = few, most

    def __call__(
        self, ids: list[int], positions: list[int], places: list[Place], wanted: list[int]
    ) -> Tensor:
        rows = len(ids)
        if rows <= self._most:
            return self.few(ids, positions, places, wanted)
        blocks = -(-rows // self._most)
        size = -(-rows // (blocks * EVEN)) * EVEN
        found: dict[int, Tensor] = {}
        for at in range(0, rows, size):
            cut = slice(at, at + size)
            its = [row for row in wanted if at <= row < at + size]
            logits = self.few(
                ids[cut], positions[cut], places[cut], [row - at for row in its]
            ).clone()
            found |= dict(zip(its, logits, strict=True))
        return torch.stack([found[row] for row in wanted]) if wanted else logits[:0]
