"""Where keys and values lie: dense slabs, so that decoding reads one view and gathers nothing.

A slab holds `slots` sequences of up to `length` tokens as `[layers, slots, heads, length, dim]`.
Lengths are powers of two from SHORTEST up, and a sequence moves to the next slab when it outgrows
its own: none reserves the model's maximum, and less than half of a longer slot is unused. Spare
slots are a few short ones or a fourth of what is used, and none beside few long ones.

Invariants (`check` asserts them):
- a sequence has exactly one slot, and the sequences of a slab fill its first slots without a gap;
- a slab with no sequence does not exist.

Beside them is a shelf of single blocks whose sequences are gone, each in memory of its own, so that
forgetting one gives its memory back.

The planner accounts for blocks and decides who may have KV; this only stores it.
"""

from __future__ import annotations

from collections.abc import Callable, KeysView, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

SHORTEST = 256
FEWEST_SLOTS = 4


Allocate = Callable[..., Tensor]
"""As torch.zeros: sizes, then dtype and device by name."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What one token's KV consists of."""

    layers: int
    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        size = torch.empty((), dtype=self.dtype).element_size()
        return self.layers * self.heads * (self.key_dim + self.value_dim) * size


class Slab:
    """Sequences of one length class, the one in slot i being `owners[i]`."""

    def __init__(self, geometry: Geometry, length: int, slots: int, zeros: Allocate) -> None:
        self.geometry = geometry
        self._zeros = zeros
        self.length = length
        self.owners: list[str] = []
        self.keys, self.values = self._allocate(slots)

    @property
    def slots(self) -> int:
        return self.keys.shape[1]

    def resize(self, slots: int) -> None:
        """Make room for `slots` sequences, at least as many as there are, keeping their KV."""
        old_keys, old_values, used = self.keys, self.values, len(self.owners)
        self.keys, self.values = self._allocate(slots)
        self.keys[:, :used] = old_keys[:, :used]
        self.values[:, :used] = old_values[:, :used]

    def copy(self, slot: int, source: Slab, source_slot: int, start: int, end: int) -> None:
        self.keys[:, slot, :, start:end] = source.keys[:, source_slot, :, start:end]
        self.values[:, slot, :, start:end] = source.values[:, source_slot, :, start:end]

    def _allocate(self, slots: int) -> tuple[Tensor, Tensor]:
        g = self.geometry
        shape = (g.layers, slots, g.heads, self.length)
        # Zeros, not rubbish: what a mask hides is still multiplied by 0, and 0 · NaN is NaN.
        return (
            self._zeros(*shape, g.key_dim, dtype=g.dtype, device=g.device),
            self._zeros(*shape, g.value_dim, dtype=g.dtype, device=g.device),
        )


@dataclass(slots=True)
class Place:
    slab: Slab
    slot: int


class KvStore:
    """The slabs of one engine and who lies where."""

    def __init__(self, geometry: Geometry, zeros: Allocate = torch.zeros) -> None:
        self.geometry = geometry
        self._zeros = zeros
        self._slabs: dict[int, Slab] = {}
        self._places: dict[str, Place] = {}
        self._shelf: dict[bytes, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, owner: str) -> bool:
        return owner in self._places

    def place(self, owner: str) -> Place:
        return self._places[owner]

    def reserve(self, owner: str, tokens: int, stored: int) -> None:
        """See to it that `owner` has a slot of at least `tokens`; its first `stored` are kept."""
        place = self._places.get(owner)
        if place is not None and tokens <= place.slab.length:
            return
        slab = self._slab(max(SHORTEST, 1 << (tokens - 1).bit_length()))
        if len(slab.owners) == slab.slots:
            slab.resize(_with_spare(slab.slots, slab.length))
        slot = len(slab.owners)
        if place is not None:
            slab.copy(slot, place.slab, place.slot, 0, stored)
            self.release(owner)
        slab.owners.append(owner)
        self._places[owner] = Place(slab, slot)

    def release(self, owner: str) -> None:
        """Free the slot at once; the slab's last sequence moves into the gap."""
        place = self._places.pop(owner, None)
        if place is None:
            return
        slab, last = place.slab, len(place.slab.owners) - 1
        mover = slab.owners.pop()
        if place.slot != last:
            slab.copy(place.slot, slab, last, 0, slab.length)
            slab.owners[place.slot] = mover
            self._places[mover].slot = place.slot
        if not slab.owners:
            del self._slabs[slab.length]
        elif _with_spare(last, slab.length) <= slab.slots // 2:
            with suppress(MemoryError, RuntimeError):  # no room for the copy: it stays as large
                slab.resize(_with_spare(last, slab.length))

    @property
    def shelved(self) -> KeysView[bytes]:
        return self._shelf.keys()

    def shelve(self, key: bytes, owner: str, start: int, tokens: int) -> None:
        """Keep a copy of a stretch of `owner`'s KV, in the same place of whoever takes it."""
        place = self._places[owner]
        stretch = (slice(None), place.slot, slice(None), slice(start, start + tokens))
        block = place.slab.keys[stretch], place.slab.values[stretch]
        keys, values = (
            self._zeros(*its.shape, dtype=its.dtype, device=its.device) for its in block
        )
        self._shelf[key] = keys.copy_(block[0]), values.copy_(block[1])

    def forget(self, key: bytes) -> None:
        del self._shelf[key]

    def clear_shelf(self) -> None:
        self._shelf.clear()

    def fill(self, owner: str, sources: Sequence[str | bytes], tokens: int) -> None:
        """Copy into `owner`'s slot its first blocks of `tokens` each: from the slot of another,
        named by its id, or from the shelf, by key."""
        place = self._places[owner]
        start = 0
        for source, same in groupby(sources):
            if isinstance(source, str):
                end = start + tokens * sum(1 for _ in same)
                other = self._places[source]
                place.slab.copy(place.slot, other.slab, other.slot, start, end)
            else:
                end = start + tokens
                keys, values = self._shelf[source]
                place.slab.keys[:, place.slot, :, start:end] = keys
                place.slab.values[:, place.slot, :, start:end] = values
            start = end

    def check(self) -> None:
        """Assert the invariants."""
        found = {
            owner: (slab.length, slot)
            for slab in self._slabs.values()
            for slot, owner in enumerate(slab.owners)
        }
        told = {owner: (p.slab.length, p.slot) for owner, p in self._places.items()}
        assert found == told, "a sequence's slot is not where it is said to be"
        for length, slab in self._slabs.items():
            assert length == slab.length
            assert 0 < len(slab.owners) <= slab.slots
            assert len(set(slab.owners)) == len(slab.owners)

    def _slab(self, length: int) -> Slab:
        if length not in self._slabs:
            slots = _with_spare(0, length)
            self._slabs[length] = Slab(self.geometry, length, slots, self._zeros)
        return self._slabs[length]


def _with_spare(used: int, length: int) -> int:
    """How many slots a slab gets for these and a few more, so that not each arrival moves it."""
    return used + max(1, FEWEST_SLOTS * SHORTEST // length, used // 4)
