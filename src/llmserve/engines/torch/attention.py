"""One attention function for transformers' models: a ragged batch in one row, KV in slabs.

A step's tokens of all sequences lie one after another in `[1, tokens]`. `Step` says whose they
are; it travels through the model's forward as the keyword STEP. Keys and values are written to
the slabs, then decode rows attend over a view of their slab, the GQA group taken as the query's
length, and prefill chunks one by one.

No mask function is registered with transformers: for an attention name without one it makes none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from llmserve.engines.torch.kv import KvStore, Slab

NAME = "llmserve_ragged"
STEP = "llmserve_step"
HONOURED = frozenset({"dropout", "is_causal", "output_attentions", "position_ids", "use_cache"})
"""Keywords that models hand to attention and that change nothing here."""


Together = Callable[[Tensor, Tensor, Tensor, float | None, Tensor], None]
"""Queries, keys and values of a step, the scaling, and where to put what it attends to."""


class UnsupportedModel(ValueError):
    """The model computes attention in a way that this engine would get wrong."""


@dataclass(frozen=True, slots=True)
class Part:
    """`tokens` rows of one sequence, the first of them at position `start`."""

    owner: str
    start: int
    tokens: int


@dataclass
class Decodes:
    """Rows `first` to `last` of the batch: one token each, of sequences in one slab."""

    slab: Slab
    first: int
    last: int
    span: int
    """The slab's first `span` slots take part."""
    slots: Tensor | None
    """The rows' slots, where they are not just 0 to span - 1."""
    length: int
    mask: Tensor

    @cached_property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values to attend to, by layer. Cut once a step: between products that have
        emptied the caches, a view costs ten times as much."""
        view = slice(None), slice(self.span), slice(None), slice(self.length)
        keys, values = self.slab.keys[view], self.slab.values[view]
        return list(zip(keys.unbind(), values.unbind(), strict=True))


@dataclass(slots=True)
class Chunk:
    """Rows `first` to `last`: a stretch of one sequence's prompt."""

    slab: Slab
    slot: int
    first: int
    last: int
    end: int
    mask: Tensor | None
    """None where the chunk starts the sequence and is plainly causal."""


@dataclass
class Write:
    """Rows `first` to `last` go to these rows of the slab, seen as `[slots·heads·length, dim]`."""

    slab: Slab
    first: int
    last: int
    index: Tensor

    @cached_property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """The slab's keys and values in rows, by layer."""
        keys, values = (
            cache.view(cache.shape[0], -1, cache.shape[-1]).unbind()
            for cache in (self.slab.keys, self.slab.values)
        )
        return list(zip(keys, values, strict=True))


@dataclass(slots=True)
class Step:
    """One forward pass over the order of parts that `layout` chose."""

    order: list[Part]
    writes: list[Write] = field(default_factory=list)
    decodes: list[Decodes] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    together: Together | None = None
    """Chunks that a kernel of its own takes in one piece (`ragged.py`)."""


def layout(parts: Iterable[Part], kv: KvStore) -> Step:
    """Order the parts slab by slab, decodes in slot order first, and prepare masks and indices.

    Every part's owner must have its place reserved.
    """
    by_slab: dict[int, list[tuple[Part, int]]] = defaultdict(list)
    slabs: dict[int, Slab] = {}
    for part in parts:
        place = kv.place(part.owner)
        slabs[place.slab.length] = place.slab
        by_slab[place.slab.length].append((part, place.slot))
    step, first = Step([]), 0
    for length, members in sorted(by_slab.items()):
        slab = slabs[length]
        singles = sorted((m for m in members if m[0].tokens == 1), key=lambda m: m[1])
        longer = [m for m in members if m[0].tokens > 1]
        step.writes.append(_write(slab, singles + longer, first))
        if singles:
            step.decodes.append(_decodes(slab, singles, first))
            step.order += [part for part, _ in singles]
            first += len(singles)
        for part, slot in longer:
            step.chunks.append(_chunk(slab, slot, part, first))
            step.order.append(part)
            first += part.tokens
    return step


def _write(slab: Slab, members: list[tuple[Part, int]], first: int) -> Write:
    g, count = slab.geometry, sum(part.tokens for part, _ in members)
    if count == len(members):
        base = torch.tensor([slot * g.heads * slab.length + part.start for part, slot in members])
    else:
        base = torch.cat(
            [
                torch.arange(part.tokens) + (slot * g.heads * slab.length + part.start)
                for part, slot in members
            ]
        )
    index = (base[:, None] + torch.arange(g.heads) * slab.length).reshape(-1)
    return Write(slab, first, first + count, index.to(g.device))


def _decodes(slab: Slab, members: list[tuple[Part, int]], first: int) -> Decodes:
    g, slots = slab.geometry, [slot for _, slot in members]
    span, length = slots[-1] + 1, max(part.start for part, _ in members) + 1
    dense = span == len(slots)
    ends = torch.zeros(span, dtype=torch.long)
    ends[slots] = torch.tensor([part.start for part, _ in members])
    hidden = torch.arange(length) > ends[:, None]
    mask = torch.zeros(span, 1, 1, length, dtype=g.dtype)
    mask.masked_fill_(hidden[:, None, None], float("-inf"))
    index = None if dense else torch.tensor(slots, device=g.device)
    return Decodes(slab, first, first + len(slots), span, index, length, mask.to(g.device))


def _chunk(slab: Slab, slot: int, part: Part, first: int) -> Chunk:
    g, end, mask = slab.geometry, part.start + part.tokens, None
    if part.start:
        mask = torch.full((part.tokens, end), float("-inf"), dtype=g.dtype, device=g.device)
        mask.triu_(part.start + 1)
    return Chunk(slab, slot, first, first + part.tokens, end, mask)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: heads first, `[1, heads, tokens, dim]`."""
    step: Step | Probe | None = extra.pop(STEP, None)
    if step is None:
        raise UnsupportedModel("it does not hand keywords on to its attention")
    if isinstance(step, Probe):
        step.see(module, query, key, value, extra)
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None
    layer: int = module.layer_idx  # type: ignore[assignment]  # every attention module has it
    queries, keys, values = (fresh[0].transpose(0, 1) for fresh in (query, key, value))
    return mix(step, layer, queries, keys, values, scaling)[None], None


def mix(
    step: Step, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scaling: float | None
) -> Tensor:
    """Store keys and values, and attend; all are `[tokens, heads, dim]`."""
    for write in step.writes:
        for cache, fresh in zip(write.layers[layer], (keys, values), strict=True):
            own = fresh if len(step.writes) == 1 else fresh[write.first : write.last]
            cache.index_copy_(0, write.index, own.reshape(-1, fresh.shape[-1]))
    if len(step.decodes) == 1 and not step.chunks and step.together is None:
        return _attend_decodes(step.decodes[0], layer, queries, scaling)
    out = queries.new_empty(*queries.shape[:2], values.shape[2])
    for group in step.decodes:
        rows = slice(group.first, group.last)
        out[rows] = _attend_decodes(group, layer, queries[rows], scaling)
    for chunk in step.chunks:
        _attend_chunk(chunk, layer, (queries, keys, values), scaling, out)
    if step.together is not None:
        step.together(queries, keys, values, scaling, out)
    return out


def _attend_decodes(
    group: Decodes, layer: int, queries: Tensor, scaling: float | None
) -> Tensor:
    heads, dim = queries.shape[1:]
    kv_heads = group.slab.geometry.heads
    if group.slots is not None:
        spread = queries.new_zeros(group.span, heads, dim)
        spread[group.slots] = queries
        queries = spread
    keys, values = group.layers[layer]
    out = scaled_dot_product_attention(
        queries.reshape(group.span, kv_heads, heads // kv_heads, dim),
        keys,
        values,
        attn_mask=group.mask,
        scale=scaling,
    ).reshape(group.span, heads, -1)
    return out if group.slots is None else out[group.slots]


def _attend_chunk(
    chunk: Chunk,
    layer: int,
    fresh: tuple[Tensor, Tensor, Tensor],
    scaling: float | None,
    out: Tensor,
) -> None:
    query, key, value = (t[chunk.first : chunk.last].transpose(0, 1)[None] for t in fresh)
    if chunk.mask is not None:
        key = chunk.slab.keys[layer, chunk.slot : chunk.slot + 1, :, : chunk.end]
        value = chunk.slab.values[layer, chunk.slot : chunk.slot + 1, :, : chunk.end]
    mixed = scaled_dot_product_attention(
        query, key, value,
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    out[chunk.first : chunk.last] = mixed[0].transpose(0, 1)


class Probe:
    """Stands in for a step once, to learn what the model's layers ask of attention."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.shapes: dict[int, tuple[int, int, int]] = {}

    def see(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]
    ) -> None:
        window = extra.pop("sliding_window", None)
        if window is not None and window < self.longest:
            raise UnsupportedModel(
                f"its attention slides over a window of {window} tokens, which this engine does "
                f"not do; start it with max_model_len={window}, where both are the same"
            )
        said = {k for k, v in extra.items() if v is not None and v is not False}
        strange = said - HONOURED
        if strange:
            raise UnsupportedModel(f"its attention needs {', '.join(sorted(strange))}")
        if not getattr(module, "is_causal", True) or extra.get("is_causal") is False:
            raise UnsupportedModel("its attention is not causal")
        layer = getattr(module, "layer_idx", None)
        if layer is None or layer in self.shapes:
            raise UnsupportedModel("its layers are not numbered one by one")
        self.shapes[layer] = (key.shape[1], key.shape[3], value.shape[3])
