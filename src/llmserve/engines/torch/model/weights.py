"""What a Llama-like network consists of, taken out of transformers' modules.

Query, key and value are joined, and so are gate and up: the same tensors serve torch's products
(`compact.py`) and kernels of our own (`fused`), so that no weight is in memory twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from llmserve.engines.torch.kv.store import Geometry

KINDS = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
)
TABLE_BYTES = 256 << 20
"""The largest table of positions; a model of more positions stays with transformers' code."""

EVEN = 32
"""The inner width is made a multiple of it."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """All contiguous, a row for each output; biases and norms are None where there are none."""

    before_attention: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    out: Tensor
    before_mlp: Tensor
    gate_up: Tensor
    down: Tensor
    out_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in (self.qkv, self.out, self.gate_up, self.down))


@dataclass(frozen=True, slots=True)
class Weights:
    layers: list[LayerWeights]
    embedding: Tensor
    norm: Tensor
    head: Tensor
    cos: Tensor
    """float32, by position, of half a head's width; the other half is the same."""
    sin: Tensor
    heads: int
    kv_heads: int
    dim: int
    eps: float
    scaling: float

    @property
    def hidden(self) -> int:
        return self.embedding.shape[1]

    @property
    def inner(self) -> int:
        return self.layers[0].down.shape[1]

    @property
    def vocabulary(self) -> int:
        return self.head.shape[0]

    @property
    def turned(self) -> int:
        """The width of query, key and value together."""
        return (self.heads + 2 * self.kv_heads) * self.dim


def fits(network: Any, geometry: Geometry, max_model_len: int) -> bool:
    """Whether the network is of a kind that `take_apart` knows, plain in all its parts."""
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
        and network.lm_head.bias is None
    )


_LINEARS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


@torch.no_grad()
def take_apart(network: Any, geometry: Geometry, max_model_len: int) -> Weights:
    """Empties the network of its layers, one by one. `fits` must have said that this can be done.

    All that is kept is copied: what was loaded lies in a file that is mapped, which knows no huge
    pages, and stays in memory for as long as any part of it is used."""
    body = network.model
    attention = body.layers[0].self_attn
    heads, scaling = attention.q_proj.out_features // geometry.key_dim, attention.scaling
    layers = []
    for index in range(len(body.layers)):
        layers.append(_layer(body.layers[index]))
        body.layers[index] = nn.Identity()
    for left in network.parameters():  # a tied one comes once
        left.data = left.data.clone()
    cos, sin = _position_table(body.rotary_emb, geometry, max_model_len)
    return Weights(
        layers=layers,
        embedding=body.embed_tokens.weight.detach(),
        norm=body.norm.weight.detach(),
        head=network.lm_head.weight.detach(),
        cos=cos, sin=sin,
        heads=heads, kv_heads=geometry.heads, dim=geometry.key_dim,
        eps=body.norm.variance_epsilon, scaling=scaling,
    )  # fmt: skip


def _layer(layer: Any) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    query_norm, key_norm = (None if norm is None else norm.weight.clone() for norm in norms)
    qkv, qkv_bias = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
    out, out_bias = _joined(attention.o_proj)
    for one in (mlp.gate_proj, mlp.up_proj):
        _widen(one, 0)
    _widen(mlp.down_proj, 1)
    gate_up, gate_up_bias = _joined(mlp.gate_proj, mlp.up_proj)
    down, down_bias = _joined(mlp.down_proj)
    return LayerWeights(
        before_attention=layer.input_layernorm.weight.clone(),
        qkv=qkv, qkv_bias=qkv_bias, query_norm=query_norm, key_norm=key_norm,
        out=out, out_bias=out_bias,
        before_mlp=layer.post_attention_layernorm.weight.clone(),
        gate_up=gate_up, gate_up_bias=gate_up_bias, down=down, down_bias=down_bias,
    )  # fmt: skip


def _widen(linear: nn.Linear, side: int) -> None:
    """Add zeros to its outputs (side 0) or inputs (1), up to a multiple of what kernels take at
    once: of gate and up, and of down, they add nothing to any sum."""
    missing = -linear.weight.shape[side] % EVEN
    if missing:
        linear.weight.data = pad(linear.weight, (0, missing) if side else (0, 0, 0, missing))
        if linear.bias is not None and not side:
            linear.bias.data = pad(linear.bias, (0, missing))


def _joined(*linears: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one product that gives the outputs of all, side by side."""
    weights = [one.weight.detach() for one in linears]
    biases = [one.bias for one in linears]
    if all(bias is None for bias in biases):
        return torch.cat(weights), None
    bias = torch.cat(
        [
            weight.new_zeros(weight.shape[0]) if bias is None else bias.detach()
            for weight, bias in zip(weights, biases, strict=True)
        ]
    )
    return torch.cat(weights), bias


def _position_table(rotary: Any, geometry: Geometry, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all positions, by the model's own rule."""
    like = torch.empty(0, dtype=torch.float32, device=geometry.device)
    cos, sin = rotary(like, torch.arange(length, device=geometry.device)[None])
    half = geometry.key_dim // 2
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
