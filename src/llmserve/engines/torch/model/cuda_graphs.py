"""Decode steps as recorded graphs: one launch where a step by itself needs hundreds.

A graph holds addresses and shapes. So a step of decodes alone is padded, its rows and lengths up to
buckets, and its graph is known by these and by where its slabs lie: one that moved is another. Ids
and positions are all that a graph reads anew; where to write and what to mask it computes of them.

In a slab's bucket row i is slot i. Rows of padding are slots that nobody has: they write their
position 0 and read it alone, and whoever gets such a slot writes a position before reading it.
Therefore a step in which any owner of a slot has no row runs as it is, as do steps with prompts.

What records and replays is an argument, so all this runs on any device; `cuda.py` has CUDA's.
"""

from __future__ import annotations

import traceback
from collections import OrderedDict
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from llmserve.engines.torch.kv.store import Geometry, Slab
from llmserve.engines.torch.model.batch_layout import Decodes, Step, Write
from llmserve.engines.torch.model.flat_model import Compute

MOST_GRAPHS = 64
SHORTEST_STEP = 64

Replay = Callable[[], object]
Capture = Callable[[Callable[[], None]], Replay]
"""Records what a function does to tensors, running it or not; each call of the replay does it
again to the same tensors."""


class GraphBucket(NamedTuple):
    """The first `rows` slots of a slab decode, over `length` tokens each."""

    slab: Slab
    rows: int
    length: int

    @property
    def key(self) -> tuple[int, ...]:
        slab = self.slab
        places = slab.keys.data_ptr(), slab.values.data_ptr()
        return *places, slab.slots, slab.length, self.rows, self.length


@dataclass(frozen=True, slots=True)
class Padded:
    buckets: tuple[GraphBucket, ...]
    places: list[int]
    """The padded row of each of the step's rows."""
    rows: int


def bucket_rows(rows: int, slots: int) -> int:
    """1, 2, 4, 8, 16, then four or two to the octave; never more than there are slots."""
    octave = 1 << (rows - 1).bit_length()
    step = octave if rows <= 8 else max(8, octave // 4)
    return min(-(-rows // step) * step, slots)


def bucket_length(length: int, longest: int) -> int:
    """Up to the next eighth of the slab's length, a power of two."""
    step = max(SHORTEST_STEP, longest // 8)
    return -(-length // step) * step


def pad(step: Step, most: int) -> Padded | None:
    """None where the step must run as it is."""
    if step.chunks:
        return None
    buckets: list[GraphBucket] = []
    places: list[int] = []
    rows = 0
    for group in step.decodes:
        slab, count = group.slab, group.last - group.first
        if count != len(slab.owners):
            return None
        buckets.append(
            GraphBucket(
                slab, bucket_rows(count, slab.slots), bucket_length(group.length, slab.length)
            )
        )
        places += range(rows, rows + count)
        rows += buckets[-1].rows
    return Padded(tuple(buckets), places, rows) if rows <= most else None


def padded_step(buckets: tuple[GraphBucket, ...], positions: Tensor) -> Step:
    """The step of these buckets, all of it made on the device from the rows' positions."""
    step, first, device = Step(), 0, positions.device
    for slab, rows, length in buckets:
        g, last = slab.geometry, first + rows
        at = positions[first:last]
        base = torch.arange(rows, device=device) * (g.heads * slab.length) + at
        heads = torch.arange(g.heads, device=device) * slab.length
        step.writes.append(Write(slab, first, last, (base[:, None] + heads).reshape(-1)))
        hidden = torch.arange(length, device=device) > at[:, None]
        mask = torch.zeros(rows, 1, 1, length, dtype=g.dtype, device=device)
        mask.masked_fill_(hidden[:, None, None], float("-inf"))
        step.decodes.append(Decodes(slab, first, last, rows, None, length, mask))
        first = last
    return step


class Graphs:
    """Computes steps as `compute` does, by graphs where it can."""

    def __init__(
        self, compute: Compute, geometry: Geometry, capture: Capture, most_rows: int
    ) -> None:
        self._compute = compute
        self._capture: Capture | None = capture
        self._most_rows = most_rows
        self._known: OrderedDict[tuple[tuple[int, ...], ...], Replay | None] = OrderedDict()
        self._inputs = torch.zeros(2, most_rows, dtype=torch.long, device=geometry.device)
        self._every = torch.arange(most_rows, device=geometry.device)
        self._logits: Tensor | None = None
        """One for all graphs: its reader is done before the next step."""

    @property
    def recorded(self) -> int:
        """How many graphs are kept."""
        return sum(replay is not None for replay in self._known.values())

    def __call__(self, step: Step, ids: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        padded = None if self._capture is None else pad(step, self._most_rows)
        replay = None if padded is None else self._find(padded)
        if padded is None or replay is None:
            return self._as_it_is(step, ids, positions, wanted)
        assert self._logits is not None
        places = torch.tensor(padded.places, device=ids.device)
        self._inputs.zero_()
        self._inputs.index_copy_(1, places, torch.stack((ids, positions)))
        replay()
        return self._logits[places[wanted]]

    def _as_it_is(self, step: Step, ids: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        logits = self._compute(step, ids, positions, wanted)
        if self._logits is None:
            self._logits = logits.new_empty(self._most_rows, logits.shape[-1])
        return logits

    def _find(self, padded: Padded) -> Replay | None:
        """The graph of these buckets, recorded when they come for the second time: most that come
        once never come again, and the first time warms up whatever the kernels must."""
        key = tuple(bucket.key for bucket in padded.buckets)
        if key not in self._known:
            self._known[key] = None
            if len(self._known) > MOST_GRAPHS:
                self._known.popitem(last=False)
            return None
        self._known.move_to_end(key)
        if self._known[key] is None:
            self._known[key] = self._record(padded)
        return self._known[key]

    def _record(self, padded: Padded) -> Replay | None:
        assert self._capture is not None
        # As they lie now: a replay must not follow a slab that moves, whoever records.
        buckets = tuple(bucket._replace(slab=copy(bucket.slab)) for bucket in padded.buckets)
        try:
            return self._capture(lambda: self._run(buckets, padded.rows))
        except RuntimeError:  # this model computes what no graph can hold, or memory is short
            traceback.print_exc()
            self._capture = None
            self._known.clear()
            return None

    def _run(self, buckets: tuple[GraphBucket, ...], rows: int) -> None:
        ids, positions = self._inputs[:, :rows]
        step = padded_step(buckets, positions)
        logits = self._compute(step, ids, positions, self._every[:rows])
        assert self._logits is not None
        self._logits[:rows].copy_(logits)
