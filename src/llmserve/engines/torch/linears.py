"""Products with weights that do not change: laid out once the way oneDNN reads them fastest.

A CPU's own layout of a weight saves what F.linear repeats at every call: two to three times for
the few rows of a decode step. The functions are private to torch, so each packed weight proves
itself on its first product, and a weight that cannot be packed stays with F.linear.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

ROWS = 8
"""The number of rows that the layout is chosen for."""
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}

Product = Callable[[Tensor], Tensor]
Sum = Callable[[Tensor, Tensor], Tensor]


class Packed:
    """`x @ weight.T + bias`, from oneDNN's layout. Raises whatever the layout fails with."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        ops: Any = torch.ops.mkldnn
        self._product: Any = ops._linear_pointwise.default
        self._with_sum: Any = ops._linear_pointwise.binary
        self._weight: Tensor = ops._reorder_linear_weight(weight.contiguous(), ROWS)
        self._bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self._product(x, self._weight, self._bias, "none", [], "")
        return out

    def add(self, x: Tensor, to: Tensor) -> Tensor:
        """The product plus `to`, which is left as it is."""
        out: Tensor = self._with_sum(x, to, self._weight, self._bias, "add")
        return out


class Plain:
    """The same by torch's public function, on any device."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self._weight, self._bias)

    def add(self, x: Tensor, to: Tensor) -> Tensor:
        return linear(x, self._weight, self._bias) + to


Linear = Packed | Plain
KINDS = (Packed, Plain)


@torch.inference_mode()
def fixed(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The fastest that proves right for this weight."""
    plain = Plain(weight, bias)
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return plain
    try:
        packed = Packed(weight, bias)
        right = all(agree(packed, plain, rows, weight) for rows in (1, ROWS + 1))
    except (AttributeError, RuntimeError, TypeError):  # another torch, or a kind it cannot pack
        return plain
    return packed if right else plain


def agree(packed: Packed, plain: Plain, rows: int, weight: Tensor) -> bool:
    """Both products of some rows with this weight are the same but for rounding."""
    x = torch.linspace(-1, 1, rows * weight.shape[1]).cos().view(rows, -1).to(weight.dtype)
    to = torch.linspace(-2, 2, rows * weight.shape[0]).view(rows, -1).to(weight.dtype)
    kept = to.clone()
    pairs = ((packed(x), plain(x)), (packed.add(x, to), plain.add(x, to)), (to, kept))
    return all(
        bool((mine.float() - its.float()).norm() <= TOLERANCE[weight.dtype] * its.float().norm())
        for mine, its in pairs
    )


class FixedLinear(nn.Module):
    """Takes the place of an nn.Linear inside a model of transformers, and frees its weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._product = fixed(linear.weight.detach(), linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._product(x)


def fix_linears(network: nn.Module) -> None:
    """Swap every plain linear layer of `network` for its packed form."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, FixedLinear(child))
