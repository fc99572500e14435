"""Llama-like models run with as few operations as there are: the same sums, less around them.

Query, key and value are one product and so are gate and up, positions are looked up in a table,
residuals are added within the products, and no modelling code is called per layer. It is built
from the weights of transformers' network (`weights.py`), so `ways.py` compares its logits with
those that the network gave before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding, layer_norm, rms_norm, silu

from llmserve.engines.torch.model.attention import mix
from llmserve.engines.torch.model.batch_layout import Step
from llmserve.engines.torch.model.packed_linears import Kernels, Linear, fixed
from llmserve.engines.torch.model.weights import LayerWeights, Weights


@dataclass(frozen=True, slots=True)
class Norm:
    weight: Tensor
    eps: float
    doubled: Tensor | None
    """The weight twice, on a CPU."""

    def __call__(self, x: Tensor) -> Tensor:
        width = self.weight.shape[0]
        if self.doubled is None or x.numel() != width:
            return rms_norm(x, self.weight.shape, self.weight, self.eps)
        # rms_norm is seven calls on a CPU. The mean of x beside -x is 0, so that layer_norm, which
        # is one, comes to the same; but two rows it spreads over threads, who must be woken.
        both = torch.cat((x, x.neg()), -1)
        return layer_norm(both, both.shape[-1:], self.doubled, None, self.eps)[..., :width]


@dataclass(frozen=True, slots=True)
class Layer:
    before_attention: Norm
    qkv: Linear
    query_norm: Norm | None
    key_norm: Norm | None
    out: Linear
    before_mlp: Norm
    gate_up: Linear
    down: Linear


class Compact:
    """The forward pass: token ids and positions in, logits out."""

    @torch.inference_mode()
    def __init__(self, weights: Weights, kernels: Kernels) -> None:
        """Takes the layers out of `weights`, one by one, unless the kernels leave them plain."""
        self._scaling, self._dim = weights.scaling, weights.dim
        self._heads, self._kv_heads = weights.heads, weights.kv_heads
        self._embedding = weights.embedding
        self._cos, self._sin = _tables(weights)
        layers = weights.layers if kernels.plain else _drained(weights.layers)
        self._layers = [_layer(one, weights.eps, kernels) for one in layers]
        self._norm = _norm(weights.norm, weights.eps)
        full = Kernels(plain=kernels.plain)  # what makes logits keeps its precision
        self._head = fixed(weights.head, None, full)

    def __call__(self, step: Step, ids: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        """Logits of the rows `wanted`."""
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        rows, rotated = ids.shape[0], self._heads + self._kv_heads
        x = embedding(ids, self._embedding)
        for index, layer in enumerate(self._layers):
            heads = layer.qkv(layer.before_attention(x)).view(rows, -1, self._dim)
            turning = heads[:, :rotated]
            if layer.query_norm is not None and layer.key_norm is not None:
                turning = torch.cat(
                    (
                        layer.query_norm(turning[:, : self._heads]),
                        layer.key_norm(turning[:, self._heads :]),
                    ),
                    1,
                )
            swapped = turning.roll(self._dim // 2, -1)
            turned = (turning * cos).addcmul_(swapped, sin)
            mixed = mix(
                step, index, turned[:, : self._heads], turned[:, self._heads :],
                heads[:, rotated:], self._scaling,
            )
            x = layer.out.add(mixed.reshape(rows, -1), x)
            gate, up = layer.gate_up(layer.before_mlp(x)).chunk(2, -1)
            x = layer.down.add(silu(gate).mul_(up), x)
        return self._head(self._norm(x[wanted]))


def _drained(layers: list[LayerWeights]) -> Iterator[LayerWeights]:
    """Nothing holds a layer once the next one is asked for."""
    layers.reverse()
    while layers:
        yield layers.pop()


def _layer(layer: LayerWeights, eps: float, kernels: Kernels) -> Layer:
    query_norm, key_norm = (
        None if norm is None else _norm(norm, eps) for norm in (layer.query_norm, layer.key_norm)
    )
    return Layer(
        before_attention=_norm(layer.before_attention, eps),
        qkv=fixed(layer.qkv, layer.qkv_bias, kernels),
        query_norm=query_norm,
        key_norm=key_norm,
        out=fixed(layer.out, layer.out_bias, kernels),
        before_mlp=_norm(layer.before_mlp, eps),
        gate_up=fixed(layer.gate_up, layer.gate_up_bias, kernels),
        down=fixed(layer.down, layer.down_bias, kernels),
    )


def _norm(weight: Tensor, eps: float) -> Norm:
    doubled = torch.cat((weight, weight)) if weight.device.type == "cpu" else None
    return Norm(weight, eps, doubled)


def _tables(weights: Weights) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all positions for whole heads, the first half of the sines negated: with
    x rolled by half its width, x * cos + rolled * sin is x turned."""
    cos, sin, dtype = weights.cos, weights.sin, weights.norm.dtype
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)
