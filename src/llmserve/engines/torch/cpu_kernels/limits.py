"""What the fused step cannot compute right is refused before it begins, for it checks nothing."""

from __future__ import annotations

import os
import platform
import struct
import sys
from collections.abc import Sequence

import torch
from llvmlite.binding import get_host_cpu_features
from torch import Tensor

from llmserve.engines.torch.cpu_isa import allows
from llmserve.engines.torch.cpu_kernels.plan import CHUNK, SCALES_BYTES
from llmserve.engines.torch.kv.store import Place, Slab
from llmserve.engines.torch.model.weights import LayerWeights, Weights

MACHINES = frozenset({"x86_64", "AMD64", "aarch64", "arm64"})
"""Those with atomics of 64 bits and vectors in LLVM's hands; the others are untried."""


def refuse(weights: Weights, most_rows: int, most_tokens: int, threads: int) -> None:
    """ValueError, in plain words, for what the step would compute wrongly."""
    refuse_machine()
    w = weights
    if not w.layers:
        raise ValueError("a model without layers")
    if min(most_rows, most_tokens, threads) < 1:
        raise ValueError("rows, tokens and threads must be 1 at least")
    if w.kv_heads < 1 or w.heads % w.kv_heads:
        raise ValueError(f"{w.heads} heads do not share {w.kv_heads} key heads evenly")
    if w.heads // w.kv_heads > SCALES_BYTES // 4:
        raise ValueError(f"{w.heads // w.kv_heads} heads to a key head are too many")
    for name, width in (("hidden size", w.hidden), ("head", w.dim), ("inner size", w.inner)):
        if width < 1 or width % 32:
            raise ValueError(f"the {name} of {width} is not a multiple of 32")
    if w.vocabulary < CHUNK:
        raise ValueError(f"a vocabulary of {w.vocabulary} is less than {CHUNK}")
    if most_tokens > w.cos.shape[0]:
        raise ValueError(f"there are only {w.cos.shape[0]} positions for {most_tokens} tokens")
    for layer in w.layers:
        refuse_layer(w, layer)
    refuse_tensor("the embedding", w.embedding, (w.embedding.shape[0], w.hidden))
    refuse_tensor("the last norm", w.norm, (w.hidden,))
    refuse_tensor("the head", w.head, (w.vocabulary, w.hidden))
    for turn in (w.cos, w.sin):
        shape = (w.cos.shape[0], w.dim // 2)
        refuse_tensor("a table of positions", turn, shape, torch.float32)


def refuse_machine() -> None:
    if sys.byteorder != "little" or struct.calcsize("P") != 8:
        raise ValueError("the fused kernels want a little-endian machine of 64 bits")
    if platform.machine() not in MACHINES:
        raise ValueError(f"the fused kernels are not for {platform.machine()}")
    if os.name != "posix":
        raise ValueError("the fused kernels wait by means that Windows has not")
    x86 = platform.machine() in ("x86_64", "AMD64")
    if x86 and not (allows("avx2") and get_host_cpu_features().get("fma")):
        raise ValueError("this CPU cannot multiply and add in one step (FMA)")


def refuse_layer(w: Weights, layer: LayerWeights) -> None:
    mixed = w.heads * w.dim
    refuse_tensor("the norm before attention", layer.before_attention, (w.hidden,))
    refuse_tensor("the query, key and value weight", layer.qkv, (w.turned, w.hidden))
    refuse_tensor("the attention's output weight", layer.out, (w.hidden, mixed))
    refuse_tensor("the norm before the MLP", layer.before_mlp, (w.hidden,))
    refuse_tensor("the gate and up weight", layer.gate_up, (2 * w.inner, w.hidden))
    refuse_tensor("the down weight", layer.down, (w.hidden, w.inner))
    if any(bias is not None for bias in (layer.out_bias, layer.gate_up_bias, layer.down_bias)):
        raise ValueError("biases of other products than query, key and value")
    for name, maybe, shape in (
        ("the query, key and value bias", layer.qkv_bias, (w.turned,)),
        ("the queries' norm", layer.query_norm, (w.dim,)),
        ("the keys' norm", layer.key_norm, (w.dim,)),
    ):
        if maybe is not None:
            refuse_tensor(name, maybe, shape)


def refuse_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16
) -> None:
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on {tensor.device}; the fused kernels are for CPUs")
    if tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}, not {dtype}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} is of shape {tuple(tensor.shape)}, not {shape}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is not laid out plainly")


def refuse_slab(w: Weights, slab: Slab) -> None:
    """Once per step and slab: its memory is what the addresses will be taken from."""
    shape = (len(w.layers), slab.keys.shape[1], w.kv_heads, slab.length, w.dim)
    refuse_tensor("a slab's keys", slab.keys, shape)
    refuse_tensor("a slab's values", slab.values, shape)
    if slab.length % 4:
        raise ValueError(f"a slot of {slab.length} tokens is not a multiple of 4")


def refuse_rows(
    ids: Sequence[int], positions: Sequence[int], places: Sequence[Place], wanted: Sequence[int],
    *, most_rows: int, most_tokens: int, vocabulary: int,
) -> None:  # fmt: skip
    """ValueError for a row that would read or write where nothing is, or what another writes."""
    count = len(ids)
    if not 0 < count <= most_rows or len(positions) != count or len(places) != count:
        raise ValueError(f"{count} rows, where 1 to {most_rows} with a place each can be computed")
    if min(ids) < 0 or max(ids) >= vocabulary:
        raise ValueError("a token that the model does not know")
    seen = set()
    for at, place in zip(positions, places, strict=True):
        if not 0 <= place.slot < place.slab.slots:
            raise ValueError(f"slot {place.slot} of {place.slab.slots}")
        if not 0 <= at < min(place.slab.length, most_tokens):
            raise ValueError(f"position {at} of {min(place.slab.length, most_tokens)}")
        seen.add((id(place.slab), place.slot, at))
    if len(seen) != count:
        raise ValueError("two rows for one position of one sequence")
    if len(wanted) > most_rows or (wanted and not 0 <= min(wanted) <= max(wanted) < count):
        raise ValueError("logits are wanted of rows that are not there")
