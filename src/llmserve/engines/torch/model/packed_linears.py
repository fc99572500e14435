"""Products with weights that do not change: laid out once the way oneDNN reads them fastest.

A CPU's own layout of a weight saves what F.linear repeats at every call: two to three times for
the few rows of a decode step. The functions are private to torch, so each packed weight proves
itself on its first product, and a weight that cannot be packed stays with F.linear.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from llmserve.engines.torch.model.int8_linears import BY_HALVES, NEAR, Int8

ROWS = 8
"""The number of rows that the layout is chosen for."""
WIDE = 256
"""From how many rows on a half-precision product may be cheaper in float32, its weight unpacked
for the occasion: a CPU with bfloat16 instructions but no tiles multiplies float32 twice as fast."""
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}


@dataclass(frozen=True, slots=True)
class Kernels:
    """How weights are to be kept and multiplied."""

    wide: int | None = None
    """From how many rows on to multiply in float32; None for never."""
    int8: bool = False
    plain: bool = False
    """Leave weights as they are, for another who reads them too."""


class Packed:
    """`x @ weight.T + bias`, from oneDNN's layout. Raises whatever the layout fails with."""

    def __init__(self, weight: Tensor, bias: Tensor | None, wide: int | None = None) -> None:
        ops: Any = torch.ops.mkldnn
        self._product: Any = ops._linear_pointwise.default
        self._with_sum: Any = ops._linear_pointwise.binary
        self._weight: Tensor = ops._reorder_linear_weight(weight.contiguous(), ROWS)
        self._bias = None if bias is None else bias.detach()
        self._wide = float("inf") if wide is None else wide * weight.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() >= self._wide:
            return self._in_float32(x).to(x.dtype)
        out: Tensor = self._product(x, self._weight, self._bias, "none", [], "")
        return out

    def add(self, x: Tensor, to: Tensor) -> Tensor:
        """The product plus `to`, which is left as it is."""
        if x.numel() >= self._wide:
            return self._in_float32(x).add_(to).to(x.dtype)
        out: Tensor = self._with_sum(x, to, self._weight, self._bias, "add")
        return out

    def _in_float32(self, x: Tensor) -> Tensor:
        bias = None if self._bias is None else self._bias.float()
        return linear(x.float(), self._weight.to_dense(torch.float32), bias)


class Plain:
    """The same by torch's public function, on any device, from the weight as it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None, wide: int | None = None) -> None:
        self._weight, self._bias = weight, bias
        self._wide = float("inf") if wide is None else wide * weight.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() >= self._wide:
            return self._in_float32(x).to(x.dtype)
        return linear(x, self._weight, self._bias)

    def add(self, x: Tensor, to: Tensor) -> Tensor:
        if x.numel() >= self._wide:
            return self._in_float32(x).add_(to).to(x.dtype)
        return linear(x, self._weight, self._bias) + to

    def _in_float32(self, x: Tensor) -> Tensor:
        bias = None if self._bias is None else self._bias.float()
        return linear(x.float(), self._weight.float(), bias)


Linear = Packed | Int8 | Plain
KINDS = (Packed, Int8, Plain)


@torch.inference_mode()
def fixed(weight: Tensor, bias: Tensor | None = None, kernels: Kernels | None = None) -> Linear:
    """The fastest that proves right for this weight. RuntimeError where int8 was asked for and
    does not."""
    kernels = kernels or Kernels()
    if kernels.plain:
        return Plain(weight, bias, kernels.wide)
    plain = Plain(weight, bias)
    if kernels.int8:
        eighth = Int8(weight, bias)
        if not agrees(eighth, plain, weight, NEAR):
            how = f" {BY_HALVES}" if eighth.halves else ""
            raise RuntimeError(f"its products in int8 come out wrong{how}")
        return eighth
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return plain
    try:
        packed = Packed(weight, bias, kernels.wide)
        right = agrees(packed, plain, weight, TOLERANCE[weight.dtype])
    except (AttributeError, RuntimeError, TypeError):  # another torch, or a kind it cannot pack
        return plain
    return packed if right else plain


def agrees(mine: Packed | Int8, plain: Plain, weight: Tensor, near: float) -> bool:
    return all(_agree(mine, plain, rows, weight, near) for rows in (1, ROWS + 1))


def _agree(fast: Packed | Int8, plain: Plain, rows: int, weight: Tensor, near: float) -> bool:
    """Both products of some rows with this weight are the same but for rounding."""
    x = torch.linspace(-1, 1, rows * weight.shape[1]).cos().view(rows, -1).to(weight.dtype)
    to = torch.linspace(-2, 2, rows * weight.shape[0]).view(rows, -1).to(weight.dtype)
    kept = to.clone()
    pairs = ((fast(x), plain(x)), (fast.add(x, to), plain.add(x, to)), (to, kept))
    return all(
        bool((mine.float() - its.float()).norm() <= near * its.float().norm())
        for mine, its in pairs
    )


@torch.inference_mode()
def wide_rows(dtype: torch.dtype) -> int | None:
    """Whether many rows are multiplied faster in float32 here, by trying: from how many rows."""
    if dtype == torch.float32 or not torch._C._has_mkldnn:
        return None
    try:
        weight = torch.ones(1024, 1024, dtype=dtype)
        packed, unpacked = Packed(weight, None), Packed(weight, None, WIDE)
        x = weight[:WIDE]
        took = [min(_seconds(one, x) for _ in range(5)) for one in (packed, unpacked)]
    except (AttributeError, RuntimeError, TypeError):  # as in `fixed`
        return None
    return WIDE if took[1] < 0.9 * took[0] else None


def _seconds(product: Callable[[Tensor], Tensor], x: Tensor) -> float:
    start = time.perf_counter()
    product(x)
    return time.perf_counter() - start


class FixedLinear(nn.Module):
    """Takes the place of an nn.Linear inside a model of transformers, and frees its weight."""

    def __init__(self, linear: nn.Linear, kernels: Kernels | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._product = fixed(linear.weight.detach(), linear.bias, kernels)

    def forward(self, x: Tensor) -> Tensor:
        return self._product(x)


def fix_linears(network: nn.Module, kernels: Kernels | None = None) -> None:
    """Swap every plain linear layer of `network` for its packed form. The one that makes logits
    keeps its precision."""
    full = Kernels() if kernels is None else Kernels(kernels.wide)
    head: Any = getattr(network, "get_output_embeddings", lambda: None)()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, FixedLinear(child, full if child is head else kernels))
