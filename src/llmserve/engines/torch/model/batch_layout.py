"""The rows of a step: whose they are, where their KV lies, and that as indices and masks.

A step's tokens of all sequences lie one after another in `[1, tokens]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from llmserve.engines.torch.kv.store import KvStore, Place, Slab

Together = Callable[[Tensor, Tensor, Tensor, float | None, Tensor], None]
"""Queries, keys and values of a step, the scaling, and where to put what it attends to."""


@dataclass(frozen=True, slots=True)
class BatchPart:
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
class PrefillChunk:
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


@dataclass(frozen=True, slots=True)
class Batch:
    """The parts of one forward pass, in the order of their rows, and where each one's KV lies."""

    order: list[BatchPart]
    places: list[Place]

    @property
    def positions(self) -> list[int]:
        """Of each row."""
        return [at for part in self.order for at in range(part.start, part.start + part.tokens)]

    @property
    def row_places(self) -> list[Place]:
        """Of each row."""
        return [
            place
            for part, place in zip(self.order, self.places, strict=True)
            for _ in range(part.tokens)
        ]


@dataclass(slots=True)
class Step:
    """A batch as torch's operations take it: what to write and attend to, with indices and masks
    that serve all layers."""

    writes: list[Write] = field(default_factory=list)
    decodes: list[Decodes] = field(default_factory=list)
    chunks: list[PrefillChunk] = field(default_factory=list)
    together: Together | None = None
    """Chunks that a kernel of its own takes in one piece (`ragged.py`)."""


def arrange(parts: Iterable[BatchPart], kv: KvStore) -> Batch:
    """Order the parts slab by slab, decodes in slot order first.

    Every part's owner must have its place reserved.
    """
    placed = [(part, kv.place(part.owner)) for part in parts]
    placed.sort(key=_in_slab)
    return Batch([part for part, _ in placed], [place for _, place in placed])


def _in_slab(placed: tuple[BatchPart, Place]) -> tuple[int, int, bool, int]:
    part, place = placed
    chunk = part.tokens > 1
    return place.slab.length, place.slab.number, chunk, 0 if chunk else place.slot


def layout(batch: Batch) -> Step:
    """The masks and indices of an arranged batch."""
    step, first = Step(), 0
    placed = zip(batch.order, batch.places, strict=True)
    for _, group in groupby(placed, key=lambda one: one[1].slab.number):
        pairs = list(group)
        slab = pairs[0][1].slab
        members = [(part, place.slot) for part, place in pairs]
        singles = [(part, slot) for part, slot in members if part.tokens == 1]
        step.writes.append(_write(slab, members, first))
        if singles:
            step.decodes.append(_decodes(slab, singles, first))
            first += len(singles)
        for part, slot in members[len(singles) :]:
            step.chunks.append(_chunk(slab, slot, part, first))
            first += part.tokens
    return step


def _write(slab: Slab, members: list[tuple[BatchPart, int]], first: int) -> Write:
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


def _decodes(slab: Slab, members: list[tuple[BatchPart, int]], first: int) -> Decodes:
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


def _chunk(slab: Slab, slot: int, part: BatchPart, first: int) -> PrefillChunk:
    g, end, mask = slab.geometry, part.start + part.tokens, None
    if part.start:
        mask = torch.full((part.tokens, end), float("-inf"), dtype=g.dtype, device=g.device)
        mask.triu_(part.start + 1)
    return PrefillChunk(slab, slot, first, first + part.tokens, end, mask)
