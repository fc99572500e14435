"""Llama-like models run with as few operations as there are: the same sums, less around them.

Query, key and value are one product and so are gate and up, positions are looked up in a table,
residuals are added within the products, and no modelling code is called per layer. It is built
from transformers' loaded network, whose layers it takes apart to save their memory, so `model.py`
compares its logits with those that the network gave before, and reads the model anew where they
differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, layer_norm, rms_norm, silu

from llmserve.engines.torch.attention import Step, mix
from llmserve.engines.torch.kv import Geometry
from llmserve.engines.torch.linears import Kernels, Linear, fixed

KINDS = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
)
TABLE_BYTES = 256 << 20
"""The largest table of positions; a model of more positions stays with transformers' code."""
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

    def __init__(
        self, network: Any, geometry: Geometry, max_model_len: int, kernels: Kernels
    ) -> None:
        """Empties the network of its layers. `fits` must have said that this can be done."""
        body = network.model
        first = body.layers[0].self_attn
        self._scaling: float = first.scaling
        self._dim = geometry.key_dim
        self._kv_heads = geometry.heads
        self._heads = first.q_proj.out_features // self._dim
        self._embedding: Tensor = body.embed_tokens.weight
        self._cos, self._sin = _position_table(body.rotary_emb, geometry, max_model_len)
        self._layers: list[Layer] = []
        for index in range(len(body.layers)):
            self._layers.append(_layer(body.layers[index], kernels))
            body.layers[index] = nn.Identity()
        self._norm = _norm(body.norm)
        self._head = fixed(network.lm_head.weight.detach(), network.lm_head.bias)

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


def fits(network: Any, geometry: Geometry, max_model_len: int) -> bool:
    """Whether the network is of a kind that `Compact` knows, plain in all its parts."""
    if type(network).__name__ not in KINDS:
        return False
    config = network.config
    table = 2 * max_model_len * geometry.key_dim * torch.finfo(geometry.dtype).bits // 8
    linears = [
        getattr(getattr(layer, part), name, None)
        for layer in network.model.layers
        for part, names in _LINEARS.items()
        for name in names
    ]
    return (
        config.hidden_act == "silu"
        and table <= TABLE_BYTES
        and geometry.key_dim == geometry.value_dim
        and all(type(one) is nn.Linear for one in [*linears, network.lm_head])
    )


_LINEARS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


def _layer(layer: Any, kernels: Kernels) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    query_norm, key_norm = (None if norm is None else _norm(norm) for norm in norms)
    return Layer(
        before_attention=_norm(layer.input_layernorm),
        qkv=_joined(kernels, attention.q_proj, attention.k_proj, attention.v_proj),
        query_norm=query_norm,
        key_norm=key_norm,
        out=_joined(kernels, attention.o_proj),
        before_mlp=_norm(layer.post_attention_layernorm),
        gate_up=_joined(kernels, mlp.gate_proj, mlp.up_proj),
        down=_joined(kernels, mlp.down_proj),
    )


def _norm(norm: Any) -> Norm:
    weight = norm.weight.detach()
    doubled = torch.cat((weight, weight)) if weight.device.type == "cpu" else None
    return Norm(weight, norm.variance_epsilon, doubled)


def _joined(kernels: Kernels, *linears: nn.Linear) -> Linear:
    """One product that gives the outputs of all, side by side."""
    weights = [one.weight.detach() for one in linears]
    biases = [one.bias for one in linears]
    if all(bias is None for bias in biases):
        bias = None
    else:
        bias = torch.cat(
            [
                weight.new_zeros(weight.shape[0]) if bias is None else bias.detach()
                for weight, bias in zip(weights, biases, strict=True)
            ]
        )
    return fixed(torch.cat(weights) if len(weights) > 1 else weights[0], bias, kernels)


@torch.inference_mode()
def _position_table(rotary: Any, geometry: Geometry, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all positions by the model's own rule, the first half of the sines
    negated: with x rolled by half its width, x * cos + rolled * sin is x turned."""
    like = torch.empty(0, dtype=geometry.dtype, device=geometry.device)
    cos, sin = rotary(like, torch.arange(length, device=geometry.device)[None])
    sin = sin[0].clone()
    sin[:, : sin.shape[-1] // 2].neg_()
    return cos[0].contiguous(), sin
