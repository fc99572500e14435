"""KV memory in blocks of a fixed number of tokens: who holds which, and how many are free.

Invariant: every block is either free or held by exactly one owner. Sharing (prefix reuse, forks)
would add a count of holders per block here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """Hands out block numbers 0 to `blocks` - 1; the most recently freed go out first."""

    def __init__(self, blocks: int, block_size: int) -> None:
        if blocks < 1 or block_size < 1:
            raise ValueError(f"{blocks} KV blocks of {block_size} tokens can hold nothing")
        self.blocks = blocks
        self.block_size = block_size
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.blocks - len(self._free)

    @property
    def capacity_tokens(self) -> int:
        return self.blocks * self.block_size

    def needed(self, tokens: int) -> int:
        """How many blocks hold `tokens` tokens of one sequence."""
        return -(-tokens // self.block_size)

    def take(self, held: list[int], count: int) -> None:
        """Append `count` free blocks to `held` (none if below 1); that many must be free."""
        if count > 0:
            held += self._free[: -count - 1 : -1]
            del self._free[-count:]

    def give_back(self, held: list[int]) -> None:
        """Free all blocks in `held`, and empty it."""
        held.reverse()
        self._free += held
        held.clear()

    def check(self, held: Iterable[list[int]]) -> None:
        """Assert that the blocks in `held`, all there are, and the free ones are the pool."""
        everything = [block for blocks in held for block in blocks] + self._free
        assert sorted(everything) == list(range(self.blocks)), "a KV block is lost or held twice"
