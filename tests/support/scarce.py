"""Memory that runs out on purpose, and that counts what is held of it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

WORDS = "DefaultCPUAllocator: can't allocate memory: you tried to allocate"


class Scarce:
    """torch.zeros on a machine with little memory, or one that fails now and then."""

    def __init__(self, limit: float = float("inf"), failing: Sequence[int] = ()) -> None:
        self.limit = limit
        self.failing = frozenset(failing)
        self.calls = self.held = self.most = self.refused = 0

    def __call__(self, *sizes: int, **kind: Any) -> Tensor:
        self.calls += 1
        size = int(torch.Size(sizes).numel()) * kind["dtype"].itemsize
        if self.held + size > self.limit or self.calls in self.failing:
            self.refused += 1
            raise RuntimeError(f"{WORDS} {size} bytes")
        made = torch.zeros(*sizes, **kind)
        self.held += size
        self.most = max(self.most, self.held)
        weakref.finalize(made, self._freed, size)
        return made

    def _freed(self, size: int) -> None:
        self.held -= size
