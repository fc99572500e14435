"""`Bisection`: the largest rate that keeps within limits, from noisy runs. Pure.

A run says how far it is from its limits, as a share: below 1 they are met. Its logarithm is what is
averaged: latencies grow by factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from llmserve.bench.results.intervals import Interval, interval

CLEAR = 2.0
"""A run that is farther than this factor from its limit decides alone."""
MOST_RUNS = 4
PRECISION = 0.05
CLIFF = 3.0
"""Between the two ends of the bracket the share grows by so much: a cliff, not a slope."""
NARROW = 1.25
"""In a wider bracket nothing is said of cliffs."""
SMALLEST = 1 / 1024

Verdict = Literal["meets", "breaks"]


@dataclass
class Bisection:
    """Doubles from `start` until a rate breaks the limits, then halves the bracket."""

    start: float
    precision: float = PRECISION
    shares: dict[float, list[float]] = field(default_factory=dict)

    def add(self, rate: float, share: float) -> None:
        self.shares.setdefault(rate, []).append(max(share, 1e-9))

    def spread(self, rate: float) -> Interval | None:
        """Of ln(share)."""
        return interval([math.log(share) for share in self.shares.get(rate, ())])

    def verdict(self, rate: float) -> Verdict | None:
        """None where it wants another run."""
        found = self.spread(rate)
        if found is None:
            return None
        side: Verdict = "breaks" if found.value > 0 else "meets"
        alone = found.n == 1 and abs(found.value) > math.log(CLEAR)
        return side if alone or found.excludes_zero or found.n >= MOST_RUNS else None

    def shown(self, rate: float) -> bool:
        """Whether its verdict is more than its mean's side."""
        found = self.spread(rate)
        return found is not None and (
            found.excludes_zero or (found.n == 1 and abs(found.value) > math.log(CLEAR))
        )

    @property
    def low(self) -> float:
        """The largest rate below all that break; 0 where none met the limits."""
        high = self.high
        return max((r for r in self.shares if r < high and self.verdict(r) == "meets"), default=0.0)

    @property
    def high(self) -> float:
        """The smallest rate that breaks them."""
        return min((r for r in self.shares if self.verdict(r) == "breaks"), default=math.inf)

    @property
    def open(self) -> float | None:
        """A rate whose verdict wants another run."""
        return next((rate for rate in self.shares if self.verdict(rate) is None), None)

    @property
    def done(self) -> bool:
        if self.open is not None or not self.shares:
            return False
        narrow = self.low > 0 and self.high / self.low <= 1 + self.precision
        return narrow or self.high <= self.start * SMALLEST

    def following(self) -> float | None:
        """The rate of the next run; None where the bracket is narrow enough."""
        if self.done:
            return None
        if (again := self.open) is not None:
            return again
        if not self.shares:
            return self.start
        if math.isinf(self.high):
            return 2 * self.low
        return self.high / 2 if not self.low else math.sqrt(self.low * self.high)

    @property
    def cliff(self) -> float | None:
        """By how much the share grows between the ends of the bracket, where that is a cliff."""
        low, high = self.spread(self.low), self.spread(self.high)
        if low is None or high is None or self.high > NARROW * self.low:
            return None
        grows = math.exp(high.value - low.value)
        return grows if grows > CLIFF else None
