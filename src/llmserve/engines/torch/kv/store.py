"""Where keys and values lie: dense slabs, so that decoding reads one view and gathers nothing.

A slab holds `slots` sequences of up to `length` tokens as `[layers, slots, heads, length, dim]`.
Lengths are powers of two, and a sequence moves to a longer slab when it outgrows its own: none
reserves the model's maximum. Beside them is a shelf of single blocks whose sequences are gone, each
in memory of its own, so that forgetting one gives its memory back.

All of it, spare slots and copies in the making included, stays within a budget: what would not is
refused with NoRoom, and nothing has changed then. While most of the budget is free, none is shorter
than SHORTEST and a length has one slab, laid anew with a few spare slots when it is full: few views
are read quickly. Later slots are as short as their sequences, down to SMALLEST, and where there is
no room for a slab beside its copy another slab is laid beside it.

Invariants (`check` asserts them):
- a sequence has exactly one slot; the sequences of a length fill its slabs in turn and the last
  slab's first slots, without a gap;
- a slab with no sequence does not exist.

The planner accounts for blocks and decides which sequences may have KV; this only stores it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, KeysView, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

SHORTEST = 256
"""Tokens of the shortest slots while there is much room."""
SMALLEST = 16
FEWEST_SLOTS = 4
AMPLE = 4
"""A slot is SHORTEST though less is needed while all slabs are one part in so many of the
budget.
"""


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

    def __init__(
        self, geometry: Geometry, length: int, slots: int, zeros: Allocate, number: int
    ) -> None:
        """`number` is its store's count of slabs so far."""
        self.geometry = geometry
        self.number = number
        self._zeros = zeros
        self.length = length
        self.owners: list[str] = []
        self.keys, self.values = self._allocate(slots)

    @property
    def slots(self) -> int:
        return self.keys.shape[1]

    @property
    def full(self) -> bool:
        return len(self.owners) == self.slots

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


class NoRoom(MemoryError):
    """More KV than the budget allows."""


class KvStore:
    """Stores the slabs of one engine, and which sequence lies where."""

    def __init__(
        self, geometry: Geometry, *, budget: int | None = None, zeros: Allocate = torch.zeros
    ) -> None:
        """`budget` is in bytes; None for no bound."""
        self.geometry = geometry
        self.budget = budget
        self._zeros = zeros
        self._slabs: dict[int, list[Slab]] = {}
        self._places: dict[str, Place] = {}
        self._shelf: dict[bytes, tuple[Tensor, Tensor]] = {}
        self._shelf_tokens = 0
        self._made = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of all slabs, unused slots included, and of the shelf."""
        slots = sum(slab.slots * slab.length for slabs in self._slabs.values() for slab in slabs)
        return (slots + self._shelf_tokens) * self.geometry.token_bytes

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
        slab = self._with_free_slot(self._length(tokens))
        slot = len(slab.owners)
        if place is not None:
            slab.copy(slot, place.slab, place.slot, 0, stored)
            self.release(owner)
        slab.owners.append(owner)
        self._places[owner] = Place(slab, slot)

    def release(self, owner: str) -> None:
        """Free the slot at once; the last sequence of that length moves into the gap."""
        place = self._places.pop(owner, None)
        if place is None:
            return
        length = place.slab.length
        slabs = self._slabs[length]
        last = slabs[-1]
        mover = last.owners.pop()
        if mover != owner:
            place.slab.copy(place.slot, last, len(last.owners), 0, length)
            place.slab.owners[place.slot] = mover
            self._places[mover] = place
        if not last.owners:
            slabs.pop()
        if not slabs:
            del self._slabs[length]
            return
        slots = _with_spare(sum(len(slab.owners) for slab in slabs), length)
        if slots <= sum(slab.slots for slab in slabs) // 2:
            with suppress(MemoryError, RuntimeError):  # no room for the copy: it stays as large
                self._lay_anew(length, slots)

    @property
    def shelved(self) -> KeysView[bytes]:
        return self._shelf.keys()

    def shelve(self, key: bytes, owner: str, start: int, tokens: int) -> None:
        """Keep a copy of a stretch of `owner`'s KV, in the same place of whoever takes it."""
        place = self._places[owner]
        stretch = (slice(None), place.slot, slice(None), slice(start, start + tokens))
        if tokens > self._room():
            raise NoRoom(f"no room for a block of {tokens} tokens within {self.budget} bytes")
        block = place.slab.keys[stretch], place.slab.values[stretch]
        keys, values = (
            self._zeros(*its.shape, dtype=its.dtype, device=its.device) for its in block
        )
        self._shelf[key] = keys.copy_(block[0]), values.copy_(block[1])
        self._shelf_tokens += tokens

    def forget(self, key: bytes) -> None:
        """Nothing happens where it is not shelved."""
        block = self._shelf.pop(key, None)
        if block is not None:
            self._shelf_tokens -= block[0].shape[2]

    def clear_shelf(self) -> None:
        self._shelf.clear()
        self._shelf_tokens = 0

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
            owner: (id(slab), slot)
            for slabs in self._slabs.values()
            for slab in slabs
            for slot, owner in enumerate(slab.owners)
        }
        recorded = {owner: (id(p.slab), p.slot) for owner, p in self._places.items()}
        assert found == recorded, "a sequence's slot is not where it is said to be"
        for length, slabs in self._slabs.items():
            assert all(slab.length == length for slab in slabs)
            assert all(slab.full for slab in slabs[:-1])
            assert 0 < len(slabs[-1].owners) <= slabs[-1].slots
        assert len(found) == sum(len(s.owners) for slabs in self._slabs.values() for s in slabs)
        assert self.budget is None or self.held_bytes <= self.budget

    def _length(self, tokens: int) -> int:
        """Of the slot for so many tokens."""
        needed = max(SMALLEST, 1 << (tokens - 1).bit_length())
        if needed >= SHORTEST:
            return needed
        roomy = self.held_bytes + SHORTEST * self.geometry.token_bytes
        if self.budget is None or roomy <= self.budget // AMPLE:
            return SHORTEST
        longer = (needed << i for i in range((SHORTEST // needed).bit_length()))
        return next((n for n in longer if n in self._slabs and not self._slabs[n][-1].full), needed)

    def _with_free_slot(self, length: int) -> Slab:
        slabs = self._slabs.get(length, [])
        if slabs and not slabs[-1].full:
            return slabs[-1]
        room = self._room() // length
        used = sum(slab.slots for slab in slabs)
        spare = _with_spare(used, length)
        if slabs and spare <= room:
            self._lay_anew(length, spare)
        elif room >= 1:
            # of what is left no more than a fourth: other lengths need room too
            slab = self._new_slab(length, max(1, min(spare - used, room // 4)))
            self._slabs.setdefault(length, []).append(slab)
        else:
            raise NoRoom(f"no room for a slot of {length} tokens within {self.budget} bytes")
        return self._slabs[length][-1]

    def _lay_anew(self, length: int, slots: int) -> None:
        """All of a length in one slab."""
        if slots * length > self._room():
            raise NoRoom(f"no room for {slots} slots of {length} tokens")
        slab = self._new_slab(length, slots)
        for old in self._slabs[length]:
            first, used = len(slab.owners), len(old.owners)
            slab.keys[:, first : first + used] = old.keys[:, :used]
            slab.values[:, first : first + used] = old.values[:, :used]
            for slot, owner in enumerate(old.owners, first):
                self._places[owner] = Place(slab, slot)
            slab.owners += old.owners
        self._slabs[length] = [slab]

    def _new_slab(self, length: int, slots: int) -> Slab:
        self._made += 1
        return Slab(self.geometry, length, slots, self._zeros, self._made)

    def _room(self) -> int:
        """Tokens for which there is memory."""
        if self.budget is None:
            return sys.maxsize
        return max(0, self.budget - self.held_bytes) // self.geometry.token_bytes


def _with_spare(used: int, length: int) -> int:
    """How many slots a slab gets for these and a few more, so that not each arrival moves it."""
    return used + max(1, FEWEST_SLOTS * SHORTEST // length, used // 4)
