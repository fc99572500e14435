"""When requests come in an open loop: six shapes of traffic, seeded.

A rate that changes is drawn by stretching time: the same exponential gaps, spent at the rate of
the moment. So two shapes with one seed differ in their rate and in nothing else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, count
from typing import Literal, get_args

Process = Literal["poisson", "constant", "gamma", "ramp", "step", "sine"]
PROCESSES: tuple[Process, ...] = get_args(Process)
CHANGING = ("ramp", "step", "sine")
"""Those that go from one rate to another."""


@dataclass(frozen=True, slots=True)
class Shape:
    """`rate` to `rate_to` within `over_s`: a straight ramp, a step half-way, or a day that begins
    and ends at `rate` and has its noon at `rate_to` (and then the next day)."""

    process: Process
    rate: float
    rate_to: float
    over_s: float
    burstiness: float
    """Of gamma: 1 is Poisson, below 1 requests come in bursts (vLLM's meaning)."""

    def times(self, rng: random.Random) -> Iterator[float]:
        """Seconds from the start, without end."""
        rate = self.rate
        if self.process == "constant":
            return (k / rate for k in count())
        if self.process == "gamma":
            shape, scale = self.burstiness, 1 / (rate * self.burstiness)
            return accumulate(rng.gammavariate(shape, scale) for _ in count())
        if self.process == "poisson":
            return accumulate(rng.expovariate(rate) for _ in count())
        when = {"ramp": self._ramp, "step": self._step, "sine": self._sine}[self.process]
        return self._stretched(when, rng)

    def _stretched(self, when: Callable[[float], float], rng: random.Random) -> Iterator[float]:
        return (when(work) for work in accumulate(rng.expovariate(1.0) for _ in count()))

    def _ramp(self, work: float) -> float:
        """When so many requests were to be expected: rate·t + slope·t²/2 = work, solved for t."""
        whole = (self.rate + self.rate_to) / 2 * self.over_s
        if work >= whole:
            return self.over_s + (work - whole) / self.rate_to
        slope = (self.rate_to - self.rate) / self.over_s
        return 2 * work / (self.rate + math.sqrt(self.rate**2 + 2 * slope * work))

    def _step(self, work: float) -> float:
        half = self.over_s / 2
        before = self.rate * half
        return work / self.rate if work < before else half + (work - before) / self.rate_to

    def _sine(self, work: float) -> float:
        """No closed form: halve the bracket that the lowest and the highest rate give."""
        low, high = sorted((work / self.rate, work / self.rate_to))
        for _ in range(60):
            t = (low + high) / 2
            if self._day(t) < work:
                low = t
            else:
                high = t
        return high

    def _day(self, t: float) -> float:
        middle, swing = (self.rate + self.rate_to) / 2, (self.rate_to - self.rate) / 2
        turn = 2 * math.pi / self.over_s
        return middle * t - swing / turn * math.sin(turn * t)

    def expected(self, within_s: float) -> float:
        """Requests to expect until then."""
        if self.process not in CHANGING:
            return self.rate * within_s
        if self.process == "sine":
            return self._day(within_s)
        part = min(within_s, self.over_s)
        end = self.rate + (self.rate_to - self.rate) * part / self.over_s
        if self.process == "ramp":
            return (self.rate + end) / 2 * part + self.rate_to * (within_s - part)
        half = min(within_s, self.over_s / 2)
        return self.rate * half + self.rate_to * (within_s - half)

    def __str__(self) -> str:
        words = f"{self.rate:g} requests/s ({self.process})"
        if self.process in CHANGING:
            words = f"{self.rate:g} to {self.rate_to:g} requests/s ({self.process})"
        return words
