"""Prompts that begin in a step, attended to in one call where there is a kernel for such batches.

Their keys and values are all fresh, so they lie in the step's rows one after another and nothing of
the slabs is read. Later chunks stay with `attention.py`, one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from llmserve.engines.torch.kv.store import Geometry
from llmserve.engines.torch.model.batch_layout import PrefillChunk, Step
from llmserve.engines.torch.model.flat_model import Compute
from llmserve.engines.torch.model.verify import TOLERANCE

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, float | None], Tensor]
"""Causal attention over `[tokens, heads, dim]`: queries, keys, values, where each sequence starts
(and the last ends) as int32, the longest one's tokens, and the scaling. Heads may be grouped."""


class VarlenAttention:
    """Computes steps as `compute` does, prompts that begin by one kernel."""

    def __init__(self, compute: Compute, kernel: Kernel) -> None:
        self._compute = compute
        self._kernel = kernel

    def __call__(self, step: Step, ids: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        return self._compute(joined(step, self._kernel, ids.device), ids, positions, wanted)


def joined(step: Step, kernel: Kernel, device: torch.device) -> Step:
    """The step with the chunks that begin a sequence taken together."""
    fresh = [chunk for chunk in step.chunks if chunk.mask is None]
    if not fresh:
        return step
    later = [chunk for chunk in step.chunks if chunk.mask is not None]
    return replace(step, chunks=later, together=_Prompts(fresh, kernel, device))


class _Prompts:
    def __init__(self, chunks: list[PrefillChunk], kernel: Kernel, device: torch.device) -> None:
        lengths = [chunk.last - chunk.first for chunk in chunks]
        rows = [row for chunk in chunks for row in range(chunk.first, chunk.last)]
        self._kernel = kernel
        self._rows = torch.tensor(rows, device=device)
        self._starts = _starts(lengths, device)
        self._longest = max(lengths)

    def __call__(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float | None, out: Tensor
    ) -> None:
        query, key, value = (fresh[self._rows] for fresh in (queries, keys, values))
        out[self._rows] = self._kernel(query, key, value, self._starts, self._longest, scaling)


@torch.inference_mode()
def agrees(kernel: Kernel, geometry: Geometry) -> bool:
    """Whether it gives what torch's usual attention does, for keys and values of this shape."""
    g, lengths = geometry, [5, 1, 9]
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(sum(lengths), heads, dim, generator=generator).to(g.device, g.dtype)
        for heads, dim in ((2 * g.heads, g.key_dim), (g.heads, g.key_dim), (g.heads, g.value_dim))
    )
    try:
        found = kernel(query, key, value, _starts(lengths, g.device), max(lengths), None)
    except (RuntimeError, ValueError):  # not for this dtype, these dimensions or this device
        return False
    parts = []
    for last, length in zip(accumulate(lengths), lengths, strict=True):
        q, k, v = (t[last - length : last].transpose(0, 1)[None] for t in (query, key, value))
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        parts.append(mixed[0].transpose(0, 1))
    expected = torch.cat(parts)
    off = (found - expected).float().norm() / expected.float().norm()
    return found.shape == expected.shape and bool(off < TOLERANCE[g.dtype])


def _starts(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
