"""What arrives when. Pure and seeded: the same workload gives the same arrivals.

Times, lengths and prompts are drawn from three separate streams, so that another rate meets the
same requests.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Length = int | tuple[int, int]
"""Tokens: a fixed count, or both ends of a uniform range."""
Process = Literal["poisson", "constant"]

DEFAULT_CONCURRENCY = 8
DEFAULT_DURATION_S = 10.0
DEFAULT_ROUNDS = 4
"""Requests per place of a closed loop that names neither requests nor duration."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to come. `salt` makes its prompt unlike any other of the run."""

    at_s: float
    """Seconds after the start; 0 in a closed loop, where a free place decides."""
    prompt_tokens: int
    max_tokens: int
    salt: int
    tenant: str = "default"
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """An open loop at `rate` requests/s, or a closed loop of `concurrency` places; not both.

    It ends after `duration_s` or `requests`, whichever comes first. Without either an open loop
    lasts 10 s and a closed loop makes 4 requests a place. Raises ValueError on nonsense.
    """

    rate: float | None = None
    concurrency: int | None = None
    process: Process = "poisson"
    duration_s: float | None = None
    requests: int | None = None
    prompt_tokens: Length = 128
    max_tokens: Length = 64
    tenant: str = "default"
    priority: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rate is not None and self.concurrency is not None:
            raise ValueError("give rate (open loop) or concurrency (closed loop), not both")
        for name in ("rate", "concurrency", "duration_s", "requests"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be above 0 and finite, not {value}")
        for name in ("prompt_tokens", "max_tokens"):
            low, high = _range(getattr(self, name))
            if not 1 <= low <= high:
                raise ValueError(f"{name} must be a count or a range (low, high) from 1 up")
        if self.process not in ("poisson", "constant"):
            raise ValueError(f"process is poisson or constant, not {self.process!r}")

    @property
    def places(self) -> int | None:
        """Places of the closed loop; None for an open one."""
        return None if self.rate is not None else self.concurrency or DEFAULT_CONCURRENCY

    @property
    def limit_s(self) -> float | None:
        """No request arrives at or after this many seconds."""
        open_ended = self.rate is not None and self.requests is None
        return DEFAULT_DURATION_S if self.duration_s is None and open_ended else self.duration_s

    @property
    def limit(self) -> int | None:
        """At most so many requests."""
        if self.requests is None and self.duration_s is None and self.places is not None:
            return DEFAULT_ROUNDS * self.places
        return self.requests

    @property
    def about(self) -> int | None:
        """How many requests to expect, for a progress bar; None where only time will tell."""
        if self.limit is None and self.rate is not None and self.limit_s is not None:
            return max(1, round(self.rate * self.limit_s))
        return self.limit

    def arrivals(self) -> Iterator[Arrival]:
        """In order of time. A closed loop bounded by duration alone goes on for ever: stop it."""
        lengths = random.Random(f"{self.seed} lengths")
        salts = random.Random(f"{self.seed} prompts")
        for at_s in itertools.islice(self._times(), self.limit):
            if self.rate is not None and self.limit_s is not None and at_s >= self.limit_s:
                return
            yield Arrival(
                at_s=at_s,
                prompt_tokens=lengths.randint(*_range(self.prompt_tokens)),
                max_tokens=lengths.randint(*_range(self.max_tokens)),
                salt=salts.getrandbits(48),
                tenant=self.tenant,
                priority=self.priority,
            )

    def __str__(self) -> str:
        if self.rate is not None:
            kind = f"open loop, {self.rate:g} requests/s ({self.process})"
        else:
            kind = f"closed loop, {self.places} at once"
        ends = [f"{self.limit} requests"] * (self.limit is not None)
        ends += [] if self.limit_s is None else [f"{self.limit_s:g} s"]
        sizes = f"{_words(self.prompt_tokens)} tokens in, {_words(self.max_tokens)} out"
        return f"{kind}, {' or '.join(ends)}, {sizes}, seed {self.seed}"

    def _times(self) -> Iterator[float]:
        if self.rate is None:
            yield from itertools.repeat(0.0)
        elif self.process == "constant":
            yield from (k / self.rate for k in itertools.count())
        else:
            gaps = random.Random(f"{self.seed} times")
            rate = self.rate
            yield from itertools.accumulate(gaps.expovariate(rate) for _ in itertools.count())


def _range(length: Length) -> tuple[int, int]:
    return (length, length) if isinstance(length, int) else length


def _words(length: Length) -> str:
    low, high = _range(length)
    return str(low) if low == high else f"{low}–{high}"
