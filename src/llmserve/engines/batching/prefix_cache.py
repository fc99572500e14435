"""Prefix caching: which blocks of KV exist already, and what must be copied to use them.

A full block's key is a hash over its tokens and the key before it, so equal keys mean equal
tokens from the very start. A block's KV exists with the running sequences that have computed it
and, once those are gone, on the pool's shelf. Nothing is shared in place: one admitted gets a
copy in blocks of its own, so a block in use is never taken from anyone.

`moves` says to the owner of the memory what to copy and forget, in order, before the slots of
leavers are freed. Rules only: nothing here knows where KV lies.

Invariant (`check` asserts it): the holders of a key are the running sequences with this block.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import NamedTuple

from llmserve.engines.batching.block_pool import BlockPool
from llmserve.engines.batching.sequence import Sequence


class Keep(NamedTuple):
    """Put a copy of the owner's block of this number, in its own order, on the shelf."""

    key: bytes
    owner: str
    number: int


class Drop(NamedTuple):
    """This shelved KV is no more."""

    key: bytes


class Reuse(NamedTuple):
    """The owner starts with a copy of these blocks.

    Each is in the same place with a running sequence, by its id, or on the shelf, by its key.
    """

    owner: str
    sources: tuple[str | bytes, ...]


Move = Keep | Drop | Reuse


class Match(NamedTuple):
    sources: tuple[str | bytes, ...]
    worth_waiting: bool
    """Running ones are about to compute most of the rest."""


NOTHING = Match((), False)


_TOKEN_BYTES = 8


def next_keys(before: bytes, tokens: list[int], size: int) -> list[bytes]:
    """Keys of full blocks of tokens, behind the block with the key before."""
    width, raw, keys = size * _TOKEN_BYTES, array("q", tokens).tobytes(), list[bytes]()
    for start in range(0, len(raw), width):
        before = sha256(before + raw[start : start + width]).digest()
        keys.append(before)
    return keys


class PrefixCache:
    """Only `StepPlanner` calls it. Where `enabled` is False it finds and keeps nothing."""

    def __init__(
        self, pool: BlockPool, *, enabled: bool, fill: Callable[[Sequence], None] | None = None
    ) -> None:
        """`fill`: as of `StepPlanner`; with it no moves are noted."""
        self.enabled = enabled
        self._moving = fill is None
        self._fill = fill
        self.moves: list[Move] = []
        self._pool = pool
        self._holders: dict[bytes, dict[str, Sequence]] = {}
        self.late: dict[bytes, dict[str, Sequence]] = {}
        """By the last key that they hold, running sequences that may hold more blocks by now than
        was noted: `catch_up` notes it before anyone asks for what follows that key."""
        self.catch_up: Callable[[bytes], None] = lambda key: None

    def match(self, seq: Sequence) -> Match:
        """Find the cached blocks of a waiting sequence. The last one must be computed anyhow, for
        its logits are what is wanted, and so are those whose log-probabilities are to come."""
        if not self.enabled:
            return NOTHING
        size = self._pool.block_size
        whole = (seq.scored if seq.scoring else len(seq.tokens) - 1) // size
        self._extend(seq, whole)
        sources: list[str | bytes] = []
        before = b""
        for index, key in enumerate(seq.keys[:whole]):
            if before in self.late:
                self.catch_up(before)
            source, before = self._source(key, index), key
            if source is None:
                break
            sources.append(source)
        coming = len(sources)
        while coming < whole and seq.keys[coming] in self._holders:
            coming += 1
        rest = len(seq.tokens) - len(sources) * size
        return Match(tuple(sources), 2 * (coming - len(sources)) * size >= rest)

    def enter(self, seq: Sequence, match: Match) -> None:
        """Note that a sequence was admitted and starts with the blocks found."""
        if not self.enabled:
            return
        if match.sources:
            seq.computed = len(match.sources) * self._pool.block_size
            for key in reversed(seq.keys[: len(match.sources)]):
                self._pool.touch(key)
            if self._moving:
                self.moves.append(Reuse(seq.id, match.sources))
        if seq.cached is None:
            seq.cached = seq.computed
        self._extend(seq, len(seq.tokens) // self._pool.block_size)
        self._hold(seq, 0)

    def grow(self, seq: Sequence) -> None:
        """Note that a running sequence has computed more."""
        known, full = len(seq.keys), seq.computed // self._pool.block_size
        if full <= known or not self.enabled:
            return
        self._extend(seq, full)
        self._hold(seq, known)

    def leave(self, seq: Sequence, *, keep: bool) -> None:
        """Free a running sequence's blocks. What nobody else has computed goes to the shelf, its
        end as the first to be taken again."""
        if self.enabled:
            holders, own = self._holders, seq.id
            for key in seq.keys:
                others = holders[key]
                if len(others) == 1:  # it is the one
                    del holders[key]
                else:
                    del others[own]
            if keep:
                self._shelve(seq, seq.computed // self._pool.block_size)
        self._pool.give_back(seq.blocks)

    def _hold(self, seq: Sequence, first: int) -> None:
        """Note that it holds the blocks of its keys from this one on."""
        holders, own = self._holders, seq.id
        for key in seq.keys[first:] if first else seq.keys:
            others = holders.get(key)
            if others is None:
                holders[key] = {own: seq}
            else:
                others[own] = seq

    def _shelve(self, seq: Sequence, blocks: int) -> None:
        """Keep so many of its blocks, but those that others have too."""
        self._extend(seq, blocks)  # what it computed since it was `late` is not noted
        if self.late:
            for key in [key for key in (b"", *seq.keys) if key in self.late]:
                self.catch_up(key)
        touch, shelve, holders = self._pool.touch, self._pool.shelve, self._holders
        keys, owned = seq.keys, seq.blocks
        for index in range(blocks - 1, -1, -1):
            key = keys[index]
            if not touch(key) and (key not in holders or self._source(key, index) is None):
                shelve(key, owned.pop(index))
                if self._moving:
                    self.moves.append(Keep(key, seq.id, index))

    def take(self, seq: Sequence, blocks: int) -> None:
        """Give a sequence free blocks, shelved ones if it must be."""
        if blocks > 0:
            lost = self._pool.take(seq.blocks, blocks)
            if self._moving:
                self.moves += map(Drop, lost)

    def clear(self) -> None:
        """Forget what is shelved and all moves not yet made; running sequences stay as they are."""
        self._pool.clear_shelf()
        self.moves.clear()

    def check(self, running: Iterable[Sequence]) -> None:
        """Assert the invariant."""
        expected: dict[bytes, set[str]] = {}
        for seq in running if self.enabled else ():
            for key in seq.keys:
                expected.setdefault(key, set()).add(seq.id)
        assert {key: set(holders) for key, holders in self._holders.items()} == expected

    def _source(self, key: bytes, index: int) -> str | bytes | None:
        """A running sequence before the shelf: its KV lies in one piece."""
        end = (index + 1) * self._pool.block_size
        for seq in self._holders.get(key, {}).values():
            if seq.computed >= end:
                return seq.id
        return key if key in self._pool.shelved else None

    def _extend(self, seq: Sequence, blocks: int) -> None:
        known, size = len(seq.keys), self._pool.block_size
        if blocks <= known:
            return
        if self._fill is not None:
            self._fill(seq)
        before = seq.keys[-1] if known else b""
        seq.keys += next_keys(before, seq.tokens[known * size : blocks * size], size)
