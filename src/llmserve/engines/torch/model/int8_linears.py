"""Products in int8: weights with a scale for each output, rows with a scale each.

oneDNN sums the products of two bytes in 16 bits on a CPU without VNNI, where the largest overflow.
There a row is taken by halves, which fit: the same sums, and twice the arithmetic.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

NEAR = 5e-2
"""The largest relative difference from the product in full precision."""

BY_HALVES = "by halves, as without VNNI (avx_vnni or avx512_vnni)"


class Int8:
    """`x @ weight.T + bias` in int8. What comes out for a row does not depend on the others."""

    def __init__(self, weight: Tensor, bias: Tensor | None, halves: bool | None = None) -> None:
        """`halves`: whether rows are taken by halves; None for where they must be."""
        ops: Any = torch.ops.onednn
        self.halves = overflows() if halves is None else halves
        scales = weight.abs().amax(1).float().clamp_min(1e-8).div_(127)
        steps = (weight / scales[:, None]).round_().to(torch.int8)
        self._product: Any = ops.qlinear_pointwise.default
        self._weight: Tensor = ops.qlinear_prepack(steps, None)
        self._scales, self._zeros = scales, torch.zeros(weight.shape[0], dtype=torch.int32)
        self._bias = None if bias is None else bias.detach().float()

    def __call__(self, x: Tensor) -> Tensor:
        return self._in_float32(x).to(x.dtype)

    def add(self, x: Tensor, to: Tensor) -> Tensor:
        return self._in_float32(x).add_(to).to(x.dtype)

    def _in_float32(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        step = rows.abs().amax(-1, keepdim=True).float().clamp_min_(1e-8).div_(127)
        # oneDNN is fast for unsigned rows only: 128 stands for 0, and the half rounds
        steps = (rows / step).add_(128.5).to(torch.uint8)
        out = self._of_halves(steps) if self.halves else self._of(steps, 128)
        out.mul_(step)
        if self._bias is not None:
            out.add_(self._bias)
        return out.view(*x.shape[:-1], -1)

    def _of_halves(self, steps: Tensor) -> Tensor:
        """In one product, which reads the weight once. No half is over 128, so two products of
        bytes are 32,512 at most, and 16 bits hold 32,767."""
        low = steps >> 1
        both = self._of(torch.cat((low, steps - low)), 64)
        return both[: len(steps)] + both[len(steps) :]

    def _of(self, steps: Tensor, zero: int) -> Tensor:
        out: Tensor = self._product(
            steps, 1.0, zero, self._weight, self._scales, self._zeros, None, 1.0, 0, torch.float32,
            "none", [], "",
        )  # fmt: skip
        return out


@cache
def overflows() -> bool:
    """Whether the largest bytes come out wrong here when rows are taken whole."""
    ones = torch.ones(64, 64)
    whole = Int8(ones, None, halves=False)
    return any(bool((whole(ones[:rows]) - 64).abs().max() > 0.1) for rows in (1, 9))
