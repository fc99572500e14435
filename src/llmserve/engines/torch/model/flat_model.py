"""A causal language model run flat: all rows of a step in one sequence, each with its slot in the
KV store. `loading.py` reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from llmserve.engines.torch.kv.store import Geometry, Place
from llmserve.engines.torch.model import attention
from llmserve.engines.torch.model.batch_layout import Batch, Step, layout

Compute = Callable[[Step, Tensor, Tensor, Tensor], Tensor]
"""A step, its token ids and their positions, and the rows wanted; logits of these rows."""


class FewRows(Protocol):
    """Computes steps of few rows by itself, as `fused.rows.Rows` does."""

    def __call__(
        self, ids: list[int], positions: list[int], places: list[Place], wanted: list[int]
    ) -> Tensor:
        """Token, position and slot of each row; logits of the rows `wanted`, in float32, good until
        the next call."""
        ...


@dataclass(slots=True)
class FlatModel:
    """Runs steps of a causal language model."""

    network: Any
    """transformers' PreTrainedModel, from which what computes may have taken the layers; None where
    weights were read without it."""
    compute: Compute
    path: str
    """How it computes, in words."""
    parameters: int
    geometry: Geometry
    max_model_len: int
    vocab_size: int
    eos_ids: frozenset[int]
    architecture: str
    few: FewRows | None = None
    """Takes the steps of up to `most_few` rows."""
    most_few: float = 0

    def compute_as(self, other: FlatModel) -> None:
        """From the next step on, in the form of `other`: the same model, proven equal."""
        assert other.geometry == self.geometry
        self.network, self.compute, self.path = other.network, other.compute, other.path
        self.few, self.most_few = other.few, other.most_few

    @torch.inference_mode()
    def forward(self, batch: Batch, tokens: list[int], wanted: list[int]) -> Tensor:
        """Logits in float32 of the rows `wanted`; `tokens` lie in the order of the batch."""
        positions = batch.positions
        if self.few is not None and len(tokens) <= self.most_few:
            try:
                return self.few(tokens, positions, batch.row_places, wanted)
            except RuntimeError:  # its threads are at odds for good: the next step goes without
                self.few = None
                raise
        device = self.geometry.device
        return self.compute(
            layout(batch),
            torch.tensor(tokens, device=device),
            torch.tensor(positions, device=device),
            torch.tensor(wanted, dtype=torch.long, device=device),
        ).float()


class General:
    """Computes by transformers' modelling code."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __call__(self, step: Step, ids: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        logits: Tensor = self._network(
            input_ids=ids[None],
            position_ids=positions[None],
            logits_to_keep=wanted,
            use_cache=False,
            **{attention.STEP: step},
        ).logits
        return logits[0]
