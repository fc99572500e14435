"""Timed samples in bounded memory, and the exact percentiles of those in a window."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FIRST_ROWS = 1024


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

        values = values[~np.isnan(values)]
        if not values.size:
            return cls()
        p50, p90, p95, p99 = (float(p) for p in np.percentile(values, (50, 90, 95, 99)))
        mean = float(values.mean())
        return cls(n=values.size, mean=mean, p50=p50, p90=p90, p95=p95, p99=p99)


class Samples:
    """Rows of numbers, the time first. Beyond `capacity` the oldest row is overwritten.

    A row takes 8 bytes a column; room grows as needed up to the capacity. Not thread-safe.
    """

    def __init__(self, columns: int, capacity: int) -> None:
        self._row = struct.Struct(f"{columns}d")
        self._columns = columns
        self._capacity = capacity
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
        room = self._capacity * self._row.size - len(self._buffer)
        if room:
            self._buffer.extend(bytes(min(room, len(self._buffer))))
            return self._offset
        self._full = True
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
        times = rows[:, 0]
        return rows[(times > after) & (times <= until)]
