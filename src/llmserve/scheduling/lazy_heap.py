"""Heaps whose keys may grow while items wait: an item is given its new one at the top."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = tuple[float, ...]
T = TypeVar("T", bound=Hashable)


class LazyHeap(Generic[T]):
    """Items by a key that may only grow. One whose key is None is gone."""

    def __init__(self, key: Callable[[T], Key | None]) -> None:
        self._key = key
        self._heap: list[tuple[Key, int, T]] = []
        self._count = 0
        self._gone = 0

    def put(self, item: T) -> None:
        """Add an item that has a key."""
        key = self._key(item)
        assert key is not None, item
        heapq.heappush(self._heap, (key, self._number(item), item))
        if 2 * self._gone > len(self._heap) + 16:
            self._heap = [node for node in self._heap if self._fresh(node) is not None]
            heapq.heapify(self._heap)
            self._gone = 0

    def discard(self, item: T) -> None:
        """Note that an item is gone; it leaves the heap when it would come to the top."""
        self._gone += 1

    def first(self) -> T | None:
        heap = self._heap
        while heap:
            node = heap[0]
            fresh = self._fresh(node)
            if fresh is None:
                heapq.heappop(heap)
                self._gone = max(0, self._gone - 1)
            elif fresh <= node[0]:
                return node[2]
            else:
                heapq.heapreplace(heap, (fresh, self._number(node[2]), node[2]))
        return None

    def _number(self, item: T) -> int:
        """Of equal keys the one that was given first is first."""
        self._count += 1
        return self._count

    def _fresh(self, node: tuple[Key, int, T]) -> Key | None:
        """The key of a node's item as it is now; None where the node is to be skipped."""
        return self._key(node[2])


class RekeyedHeap(LazyHeap[T]):
    """A `LazyHeap` whose items may come back, or be put again when their key became smaller."""

    def __init__(self, key: Callable[[T], Key | None]) -> None:
        super().__init__(key)
        self._newest: dict[T, int] = {}

    def put(self, item: T) -> None:
        self.discard(item)
        super().put(item)

    def _number(self, item: T) -> int:
        self._newest[item] = number = super()._number(item)
        return number

    def discard(self, item: T) -> None:
        if self._newest.pop(item, None) is not None:
            super().discard(item)

    def _fresh(self, node: tuple[Key, int, T]) -> Key | None:
        return self._key(node[2]) if self._newest.get(node[2]) == node[1] else None
