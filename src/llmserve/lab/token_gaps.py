"""The gaps between tokens of a simulation: how long each was, and how many requests had it.

One row per step, not per token. Beyond `_ROWS` of them like gaps are joined, and their times are
given up: a gap is then known to one part in 10,000.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from llmserve.observe.window import Summary, counted_quantiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROWS = 1_048_576
_FINE = 1e-4


class TokenGaps:
    def __init__(self, rows: int = _ROWS) -> None:
        self._most = rows
        self._times, self._gaps, self._counts = array("d"), array("d"), array("q")
        self.joined = False

    def add(self, times: list[float], gaps_s: list[float], requests: int) -> None:
        """At each of these times so many requests had a token so long after the one before."""
        if not requests:
            return
        self._times.extend(times)
        self._gaps.extend(gaps_s)
        if len(times) == 1:
            self._counts.append(requests)
        else:
            self._counts.extend([requests] * len(times))
        if len(self._gaps) > self._most:
            self._join()

    def summary(self) -> Summary:
        return Summary.of_counted(*self._counted())

    def quantiles(self) -> list[float]:
        """0 % to 100 % in steps of 1 %; nothing where there is nothing."""
        gaps, counts = self._counted()
        if not counts.size:
            return []
        return counted_quantiles(gaps, counts, [percent / 100 for percent in range(101)])

    def timed(self) -> NDArray[np.float64]:
        """Rows of time, gap and tokens, of those whose time is known."""
        import numpy as np

        gaps, counts = self._counted()
        rows = np.stack((np.frombuffer(self._times), gaps, counts.astype(np.float64)), axis=1)
        return rows[~np.isnan(rows[:, 0])]

    def _counted(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        import numpy as np

        return np.array(self._gaps), np.array(self._counts)

    def _join(self) -> None:
        import numpy as np

        gaps, counts = self._counted()
        places = np.round(np.log(np.maximum(gaps, 1e-9)) / _FINE).astype(np.int64)
        places[gaps <= 0] = np.iinfo(np.int64).min
        like, members = np.unique(places, return_inverse=True)
        total = np.bincount(members, weights=counts).astype(np.int64)
        mean = np.bincount(members, weights=gaps * counts) / total
        self._gaps, self._counts = array("d", mean), array("q", total)
        self._times = array("d", [np.nan]) * len(like)
        self.joined = True
