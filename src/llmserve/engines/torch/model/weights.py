"""What a Llama-like network consists of, taken out of transformers' modules.

Query, key and value are joined, and so are gate and up: the same tensors serve torch's products
(`compact.py`) and kernels of our own (`fused`), so that no weight is in memory twice.
"""

from __future__ import annotations

from collections.abc import Callable
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
        layers.append(layer_weights(tensors_of(body.layers[index])))
        body.layers[index] = nn.Identity()
    for left in network.parameters():  # a tied one comes once
        left.data = left.data.clone()
    cos, sin = position_table(body.rotary_emb, geometry, max_model_len)
    return Weights(
        layers=layers,
        embedding=body.embed_tokens.weight.detach(),
        norm=body.norm.weight.detach(),
        head=network.lm_head.weight.detach(),
        cos=cos, sin=sin,
        heads=heads, kv_heads=geometry.heads, dim=geometry.key_dim,
        eps=body.norm.variance_epsilon, scaling=scaling,
    )  # fmt: skip


Tensors = Callable[[str], Tensor | None]
"""A layer's tensor by its name within the layer, or None where it has none of that name."""


def tensors_of(layer: nn.Module) -> Tensors:
    """Of a layer of transformers' network."""
    return {name: one.detach() for name, one in layer.named_parameters()}.get


def layer_weights(tensor: Tensors) -> LayerWeights:
    """Copies of a layer's tensors, joined."""
    parts = [f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")]
    qkv, qkv_bias = _joined(*(_linear(tensor, name) for name in parts))
    out, out_bias = _joined(_linear(tensor, "self_attn.o_proj"))
    sides = [_linear(tensor, f"mlp.{name}") for name in ("gate_proj", "up_proj")]
    gate_up, gate_up_bias = _joined(*(_widened(one) for one in sides))
    weight, down_bias = _linear(tensor, "mlp.down_proj")
    down, down_bias = _joined((pad(weight, (0, -weight.shape[1] % EVEN)), down_bias))
    query_norm, key_norm = (tensor(f"self_attn.{name}.weight") for name in ("q_norm", "k_norm"))
    return LayerWeights(
        before_attention=_needed(tensor, "input_layernorm.weight").clone(),
        qkv=qkv, qkv_bias=qkv_bias,
        query_norm=None if query_norm is None else query_norm.clone(),
        key_norm=None if key_norm is None else key_norm.clone(),
        out=out, out_bias=out_bias,
        before_mlp=_needed(tensor, "post_attention_layernorm.weight").clone(),
        gate_up=gate_up, gate_up_bias=gate_up_bias, down=down, down_bias=down_bias,
    )  # fmt: skip


Affine = tuple[Tensor, Tensor | None]
"""Weight and bias of a product."""


def _linear(tensor: Tensors, name: str) -> Affine:
    return _needed(tensor, f"{name}.weight"), tensor(f"{name}.bias")


def _needed(tensor: Tensors, name: str) -> Tensor:
    found = tensor(name)
    if found is None:
        raise KeyError(f"a layer has no {name}")
    return found


def _widened(linear: Affine) -> Affine:
    """With outputs of zeros added, up to a multiple of what kernels take at once: of gate and up,
    and of down's inputs, they add nothing to any sum."""
    weight, bias = linear
    missing = -weight.shape[0] % EVEN
    if not missing:
        return linear
    return pad(weight, (0, 0, 0, missing)), None if bias is None else pad(bias, (0, missing))


def _joined(*linears: Affine) -> Affine:
    """Weight and bias of one product that gives the outputs of all, side by side, in a copy."""
    weights, biases = zip(*linears, strict=True)
    if all(bias is None for bias in biases):
        return torch.cat(weights), None
    bias = torch.cat(
        [
            weight.new_zeros(weight.shape[0]) if bias is None else bias
            for weight, bias in linears
        ]
    )
    return torch.cat(weights), bias


def position_table(rotary: Any, geometry: Geometry, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all positions, by the model's own rule."""
    like = torch.empty(0, dtype=torch.float32, device=geometry.device)
    cos, sin = rotary(like, torch.arange(length, device=geometry.device)[None])
    half = geometry.key_dim // 2
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
