"""KV memory in blocks of a fixed number of tokens: who holds which, and how many are free.

Invariants (`check` asserts them):
- every block is plain free, shelved, or owned by exactly one sequence;
- a shelved block keeps the KV of one finished stretch under its key, no two the same, and is free
  all the same: `take` hands it out when no plain one is left, the least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable, KeysView


class BlockPool:
    """Hands out block numbers 0 to `blocks` - 1; the most recently freed go out first."""

    def __init__(self, blocks: int, block_size: int) -> None:
        if blocks < 1 or block_size < 1:
            raise ValueError(f"{blocks} KV blocks of {block_size} tokens can hold nothing")
        self.blocks = blocks
        self.block_size = block_size
        self._free = list(range(blocks - 1, -1, -1))
        self._shelf: OrderedDict[bytes, int] = OrderedDict()  # least recently used first

    @property
    def free(self) -> int:
        return len(self._free) + len(self._shelf)

    @property
    def used(self) -> int:
        return self.blocks - self.free

    @property
    def shelved(self) -> KeysView[bytes]:
        """The least recently used first."""
        return self._shelf.keys()

    @property
    def capacity_tokens(self) -> int:
        return self.blocks * self.block_size

    def needed(self, tokens: int) -> int:
        """How many blocks hold `tokens` tokens of one sequence."""
        return -(-tokens // self.block_size)

    def take(self, owned: list[int], count: int) -> list[bytes]:
        """Append `count` free blocks to `owned` (none if below 1); that many must be free.

        Returns the keys of those that were shelved: their KV is gone.
        """
        lost: list[bytes] = []
        for _ in range(count - len(self._free)):
            key, block = self._shelf.popitem(last=False)
            lost.append(key)
            self._free.append(block)
        if count > 0:
            owned += self._free[: -count - 1 : -1]
            del self._free[-count:]
        return lost

    def give_back(self, owned: list[int]) -> None:
        """Free all blocks in `owned`, and empty it."""
        owned.reverse()
        self._free += owned
        owned.clear()

    def shelve(self, key: bytes, block: int) -> None:
        """Free an owned block, keeping its KV under a new key, now the most recently used."""
        assert key not in self._shelf, "shelved twice"
        self._shelf[key] = block

    def touch(self, key: bytes) -> bool:
        """This key is now the most recently used; False where it is not shelved."""
        if key not in self._shelf:
            return False
        self._shelf.move_to_end(key)
        return True

    def forget(self, count: int, kept: Container[str | bytes] = ()) -> list[bytes]:
        """Turn so many shelved blocks into plain free ones, the least recently used first and none
        of `kept`, nor any used after one of these; returns their keys."""
        lost: list[bytes] = []
        while self._shelf and len(lost) < count and next(iter(self._shelf)) not in kept:
            key, block = self._shelf.popitem(last=False)
            lost.append(key)
            self._free.append(block)
        return lost

    def clear_shelf(self) -> None:
        self._free += self._shelf.values()
        self._shelf.clear()

    def check(self, owned: Iterable[list[int]]) -> None:
        """Assert that the blocks in `owned`, all there are, and the free ones are the pool."""
        everything = [block for blocks in owned for block in blocks] + self._free
        everything += self._shelf.values()
        assert sorted(everything) == list(range(self.blocks)), "a KV block is lost or owned twice"
