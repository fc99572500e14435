"""A Llama-like model's weights read from its folder, without transformers' modelling code.

What the modelling code knows beside the weights is noted once as `NetworkFacts`, and only where the
weights read here are bit for bit those that transformers loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from llmserve.engines.torch.kv.store import Geometry
from llmserve.engines.torch.model.flat_model import FlatModel
from llmserve.engines.torch.model.weights import (
    LayerWeights,
    Weights,
    fits,
    layer_weights,
    position_table,
    tensors_of,
)
from llmserve.engines.torch.options import cores

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class NetworkFacts(msgspec.Struct, frozen=True):
    """What a network is beside its weights."""

    architecture: str
    parameters: int
    vocab_size: int
    max_model_len: int
    eos_ids: tuple[int, ...]
    dtype: str
    tied: bool
    """The embedding is the head, too."""
    layers: int
    heads: int
    kv_heads: int
    dim: int
    eps: float
    scaling: float
    frequencies: tuple[float, ...]
    """Turns per position of each pair in a head."""
    amplitude: float
    """Of cosines and sines."""

    @property
    def geometry(self) -> Geometry:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return Geometry(
            self.layers, self.kv_heads, self.dim, self.dim, dtype, torch.device("cpu")
        )


class FolderTensors:
    """The tensors of a folder's safetensors files by name, in one dtype. What has it in the file is
    mapped and not yet read: `needed` copies, and so does `layer_weights`."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        """OSError or ValueError where the files are not there or not readable."""
        from safetensors import SafetensorError, safe_open

        index = folder / INDEX
        names = [SINGLE]
        if not (folder / SINGLE).is_file() and index.is_file():
            placed: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(placed.values()))
        self._dtype = dtype
        self._files: dict[str, Any] = {}
        for name in names:
            if Path(name).name != name:
                raise ValueError(f"{INDEX} names a file outside its folder: {name!r}")
            try:
                opened: Any = safe_open(str(folder / name), framework="pt")
            except SafetensorError as error:
                raise ValueError(f"{name} is not readable: {error}") from None
            self._files |= dict.fromkeys(opened.keys(), opened)

    def __call__(self, name: str) -> Tensor | None:
        file = self._files.get(name)
        return None if file is None else file.get_tensor(name).to(self._dtype)

    def of_layer(self, index: int, name: str) -> Tensor | None:
        return self(f"model.layers.{index}.{name}")

    def needed(self, name: str) -> Tensor:
        """A copy. KeyError where it is not there."""
        found = self(name)
        if found is None:
            raise KeyError(f"the weights have no {name}")
        return found.clone()


def read_weights(folder: Path, facts: NetworkFacts) -> Weights:
    """Raises OSError, ValueError or KeyError where the files do not hold them."""
    tensors = FolderTensors(folder, facts.geometry.dtype)
    embedding = tensors.needed("model.embed_tokens.weight")
    cos, sin = _position_table(facts)
    return Weights(
        layers=list(_layers(tensors, facts)),
        embedding=embedding,
        norm=tensors.needed("model.norm.weight"),
        head=embedding if facts.tied else tensors.needed("lm_head.weight"),
        cos=cos, sin=sin,
        heads=facts.heads, kv_heads=facts.kv_heads, dim=facts.dim,
        eps=facts.eps, scaling=facts.scaling,
    )  # fmt: skip


def _layers(tensors: FolderTensors, facts: NetworkFacts) -> Iterator[LayerWeights]:
    """By all cores: what takes the time is memory that is touched for the first time."""
    with ThreadPoolExecutor(cores(), "weights") as readers:
        yield from readers.map(
            lambda index: layer_weights(partial(tensors.of_layer, index)), range(facts.layers)
        )


def _position_table(facts: NetworkFacts) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all positions, computed as transformers' code computes them."""
    turns = torch.tensor(facts.frequencies, dtype=torch.float32)
    positions = torch.arange(facts.max_model_len)[None, None].float()
    angles = (turns[None, :, None] @ positions).transpose(1, 2)
    angles = torch.cat((angles, angles), -1)
    half = facts.dim // 2
    cos, sin = angles.cos() * facts.amplitude, angles.sin() * facts.amplitude
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()


@torch.no_grad()
def note_facts(model: FlatModel, folder: Path) -> NetworkFacts | None:
    """Of transformers' network as it was loaded; None where reading the folder directly would
    not give the same, bit for bit."""
    network, geometry = model.network, model.geometry
    plain = type(network).__module__.startswith("transformers.")  # no code from the model's folder
    if geometry.device.type != "cpu" or not plain:
        return None
    if not fits(network, geometry, model.max_model_len):
        return None
    try:
        facts = _facts(model)
        return facts if _same(network, facts, folder) else None
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError):
        return None


def _facts(model: FlatModel) -> NetworkFacts:
    network, geometry = model.network, model.geometry
    body, attention = network.model, network.model.layers[0].self_attn
    return NetworkFacts(
        architecture=type(network).__name__,
        parameters=model.parameters,
        vocab_size=model.vocab_size,
        max_model_len=model.max_model_len,
        eos_ids=tuple(sorted(model.eos_ids)),
        dtype=str(geometry.dtype).removeprefix("torch."),
        tied=network.lm_head.weight is body.embed_tokens.weight,
        layers=geometry.layers,
        heads=attention.q_proj.out_features // geometry.key_dim,
        kv_heads=geometry.heads,
        dim=geometry.key_dim,
        eps=float(body.norm.variance_epsilon),
        scaling=float(attention.scaling),
        frequencies=tuple(body.rotary_emb.inv_freq.float().tolist()),
        amplitude=float(body.rotary_emb.attention_scaling),
    )


def _same(network: Any, facts: NetworkFacts, folder: Path) -> bool:
    body, tensors = network.model, FolderTensors(folder, facts.geometry.dtype)
    pairs = [
        (tensors.needed("model.embed_tokens.weight"), body.embed_tokens.weight),
        (tensors.needed("model.norm.weight"), body.norm.weight),
        *zip(
            _position_table(facts),
            position_table(body.rotary_emb, facts.geometry, facts.max_model_len),
            strict=True,
        ),
    ]
    if not facts.tied:
        pairs.append((tensors.needed("lm_head.weight"), network.lm_head.weight))
    if not all(torch.equal(mine, its) for mine, its in pairs):
        return False
    return all(
        _equal(mine, layer_weights(tensors_of(layer)))
        for mine, layer in zip(_layers(tensors, facts), body.layers, strict=True)
    )


def _equal(mine: LayerWeights, its: LayerWeights) -> bool:
    for field in fields(LayerWeights):
        one, other = getattr(mine, field.name), getattr(its, field.name)
        if one is None or other is None:
            if one is not other:
                return False
        elif not torch.equal(one, other):
            return False
    return True
