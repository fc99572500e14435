"""Timed samples in bounded memory, and the exact percentiles of those in a window."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FIRST_ROWS = 1024
_BLOCK = 256


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. Percentiles are exact over the `n` samples, interpolated as numpy does."""

    n: int = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Summary:
        """Of the finite ones among `values`: NaN stands for "this row has no such figure"."""
        import numpy as np

        ordered = np.sort(values)  # NaN last
        n = int(ordered.searchsorted(np.nan))
        if not n:
            return cls()
        p50, p90, p95, p99 = (_at(ordered, n, rank) for rank in (0.50, 0.90, 0.95, 0.99))
        return cls(n=n, mean=float(ordered[:n].sum()) / n, p50=p50, p90=p90, p95=p95, p99=p99)

    @classmethod
    def of_counted(cls, values: NDArray[np.float64], counts: NDArray[np.int64]) -> Summary:
        """As of so many of each value."""
        n = int(counts.sum())
        if not n:
            return cls()
        p50, p90, p95, p99 = counted_quantiles(values, counts, (0.50, 0.90, 0.95, 0.99))
        return cls(n=n, mean=float(values @ counts) / n, p50=p50, p90=p90, p95=p95, p99=p99)


def counted_quantiles(
    values: NDArray[np.float64], counts: NDArray[np.int64], ranks: Iterable[float]
) -> list[float]:
    """Where there are so many of each value, at least one in all."""
    import numpy as np

    order = np.argsort(values)
    values, ends = values[order], np.cumsum(counts[order])
    places = (int(ends[-1]) - 1) * np.fromiter(ranks, np.float64)
    lows = places.astype(np.int64)
    below = values[ends.searchsorted(lows, side="right")]
    above = values[ends.searchsorted(np.minimum(lows + 1, ends[-1] - 1), side="right")]
    parts, steps = places - lows, above - below
    found = np.where(parts >= 0.5, above - steps * (1.0 - parts), below + steps * parts)
    return [float(value) for value in found]


def _at(ordered: NDArray[np.float64], n: int, rank: float) -> float:
    """As numpy's "linear" percentile, a tenth of its time."""
    place = (n - 1) * rank
    low = int(place)
    part = place - low
    below, above = float(ordered[low]), float(ordered[min(low + 1, n - 1)])
    step = above - below
    return above - step * (1.0 - part) if part >= 0.5 else below + step * part


def between(rows: NDArray[np.float64], after: float, until: float) -> NDArray[np.float64]:
    """The rows with after < time <= until: a view where they are neighbours, as they mostly are."""
    import numpy as np

    inside = (rows[:, 0] > after) & (rows[:, 0] <= until)
    count = int(np.count_nonzero(inside))
    first = int(inside.argmax()) if count else 0
    neighbours = inside[first : first + count].all()
    return rows[first : first + count] if neighbours else rows[inside]


class Samples:
    """Rows of numbers, the time first. Beyond `capacity` the oldest row is overwritten.

    A row takes 8 bytes a column; room grows as needed up to the capacity. Not thread-safe.

    Rows come about in the order of their times, and nothing rests on it: of each block of rows the
    earliest and latest time are noted once it is full, so that a window reads only the blocks that
    have some of it.
    """

    def __init__(self, columns: int, capacity: int) -> None:
        self.capacity = capacity
        self._block = _BLOCK if capacity % _BLOCK == 0 else capacity
        self._times: NDArray[np.float64] | None = None
        """Earliest and latest time of each full block, by its place in the buffer."""
        self._noted = 0
        self._rounds = 0
        self._row = struct.Struct(f"{columns}d")
        self._columns = columns
        self._buffer = bytearray(self._row.size * min(_FIRST_ROWS, capacity))
        self._offset = 0
        self._full = False
        """True once rows are overwritten: then all of the buffer holds rows."""

    def append(self, *row: float) -> None:
        offset = self._offset
        if offset == len(self._buffer):
            offset = self._make_room()
        self._row.pack_into(self._buffer, offset, *row)
        self._offset = offset + self._row.size

    def _make_room(self) -> int:
        """Offset of the next row: behind the last one while the buffer may grow, else 0."""
        room = self.capacity * self._row.size - len(self._buffer)
        if room:
            self._buffer.extend(bytes(min(room, len(self._buffer))))
            return self._offset
        self._full = True
        self._rounds += 1
        return 0

    def __len__(self) -> int:
        return (len(self._buffer) if self._full else self._offset) // self._row.size

    def oldest(self) -> float | None:
        """Time of the oldest row when older ones were overwritten, else None."""
        if not self._full:
            return None
        return float(self._row.unpack_from(self._buffer, self._offset % len(self._buffer))[0])

    def window(self, after: float, until: float) -> NDArray[np.float64]:
        """A copy of the rows with after < time <= until, in no promised order."""
        import numpy as np

        filled = len(self) * self._columns
        rows = np.frombuffer(self._buffer, np.float64, filled).reshape(-1, self._columns)
        start, end = self._span(rows, after, until)
        first, last = start % self.capacity, (end - 1) % self.capacity + 1
        if start >= end:
            return rows[:0].copy()
        if first < last:
            return between(rows[first:last], after, until).copy()
        return between(np.concatenate((rows[first:], rows[:last])), after, until)

    def _span(
        self, rows: NDArray[np.float64], after: float, until: float
    ) -> tuple[int, int]:
        """All rows of the window are from the first to before the second, as rows ever counted."""
        import numpy as np

        count = self._rounds * self.capacity + self._offset // self._row.size
        full, blocks = count // self._block, self.capacity // self._block
        if self._times is None:
            self._times = np.empty((blocks, 2))
        for number in range(max(self._noted, full - blocks), full):
            at = number % blocks * self._block
            times = rows[at : at + self._block, 0]
            self._times[number % blocks] = times.min(), times.max()
        self._noted = full
        oldest = max(0, full - blocks)
        kept = self._times[np.arange(oldest, full) % blocks]
        late = np.flatnonzero(kept[:, 1] > after)
        early = np.flatnonzero(kept[:, 0] <= until)
        start = (oldest + int(late[0]) if late.size else full) * self._block
        newest = rows[full % blocks * self._block :][: count % self._block, 0]
        if newest.size and newest.min() <= until:
            return max(start, count - self.capacity), count
        end = (oldest + int(early[-1]) + 1 if early.size else oldest) * self._block
        return max(start, count - self.capacity), min(end, count)
