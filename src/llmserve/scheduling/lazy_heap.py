"""A heap whose keys may grow while items wait: an item is given its new one at the top."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = tuple[float, ...]
T = TypeVar("T", bound=Hashable)


class LazyHeap(Generic[T]):
    """Items by a key that may only grow; one valid entry an item, the others are skipped."""

    def __init__(self, key: Callable[[T], Key | None]) -> None:
        self._key = key
        self._heap: list[tuple[Key, int, T]] = []
        self._valid: dict[T, int] = {}
        self._count = 0

    def put(self, item: T) -> None:
        """Add an item, or tell that its key may have become smaller."""
        key = self._key(item)
        if key is None:
            self.discard(item)
            return
        self._push(key, item)
        if len(self._heap) > 2 * len(self._valid) + 16:
            self._heap = [entry for entry in self._heap if self._valid.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def discard(self, item: T) -> None:
        self._valid.pop(item, None)

    def first(self) -> T | None:
        while self._heap:
            key, count, item = self._heap[0]
            if self._valid.get(item) == count:
                fresh = self._key(item)
                if fresh is not None and fresh <= key:
                    return item
                self.discard(item)
                if fresh is not None:
                    self._push(fresh, item)
                    continue  # the stale entry is skipped when it is met again
            heapq.heappop(self._heap)
        return None

    def _push(self, key: Key, item: T) -> None:
        self._count += 1
        self._valid[item] = self._count
        heapq.heappush(self._heap, (key, self._count, item))
