"""What a step takes by a model that was fitted to measured steps, its tails included.

A step's time is a sum of terms, none of them negative, so that more work never takes less time. On
it comes a factor that is drawn for each step from the quantiles of what the fit left over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import msgspec

from llmserve.core.validation import meant, real, whole
from llmserve.engines.batching.sequence import PlannedRow

RANKS = (
    0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6,
    0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.995, 0.998, 1.0,
)  # fmt: skip
"""Of the quantiles that a spread keeps."""
_POOL, _PLACES = 1 << 14, 1 << 12
_MOST_S, _MOST_FACTOR, _MOST_AT = 1e6, 1e6, 1 << 24
_BUCKETS = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
"""Rows of the CUDA graphs that vLLM captures unless told otherwise."""


class StepWork(NamedTuple):
    """What one step computes."""

    decode_rows: int = 0
    prefill_rows: int = 0
    prefill_tokens: int = 0
    kv_tokens: int = 0
    """Tokens of context that its rows read, their own new ones too."""
    pairs: int = 0
    """Prefill tokens times the context that they read."""


def work_of(rows: Iterable[PlannedRow], together: int = 0, kv_tokens: int = 0) -> StepWork:
    """Of these rows, and of so many decodes beside them that read so much."""
    decodes, prefills, tokens, pairs = together, 0, 0, 0
    for row in rows:
        reads = row.start + row.tokens
        kv_tokens += reads
        if row.kind == "prefill":
            prefills += 1
            tokens += row.tokens
            pairs += row.tokens * reads
        else:
            decodes += row.tokens
    return StepWork(decodes, prefills, tokens, kv_tokens, pairs)


def _bucket(work: StepWork, at: int) -> int:
    rows = work.decode_rows + work.prefill_tokens
    return next((size for size in _BUCKETS if size >= rows), rows)


Count = Callable[[StepWork, int], int]
COUNTS: dict[str, Count] = {
    "step": lambda work, at: 1,
    "prefill": lambda work, at: int(work.prefill_tokens > 0),
    "decode": lambda work, at: int(work.decode_rows > 0),
    "decode_row": lambda work, at: work.decode_rows,
    "prefill_row": lambda work, at: work.prefill_rows,
    "prefill_token": lambda work, at: work.prefill_tokens,
    "kv_token": lambda work, at: work.kv_tokens,
    "pair": lambda work, at: work.pairs,
    "first_decode_row": lambda work, at: min(work.decode_rows, at),
    "first_prefill_token": lambda work, at: min(work.prefill_tokens, at),
    "first_row": lambda work, at: min(work.decode_rows + work.prefill_tokens, at),
    "row_block": lambda work, at: -(-(work.decode_rows + work.prefill_tokens) // at),
    "graph_row": _bucket,
}
"""How often a step pays a term; `at` is the term's own number."""
WORDS = {
    "step": "each step",
    "prefill": "a step with prefill",
    "decode": "a step with decode",
    "decode_row": "a decode row",
    "prefill_row": "a prefill row",
    "prefill_token": "a prefill token",
    "kv_token": "a KV token read",
    "pair": "a prefill token times a token of its context",
    "first_decode_row": "each of the first {at} decode rows",
    "first_prefill_token": "each of the first {at} prefill tokens",
    "first_row": "each of the first {at} tokens computed",
    "row_block": "a block of {at} tokens computed",
    "graph_row": "a row of the captured graph's size",
}


class StepTerm(msgspec.Struct, frozen=True):
    """So many seconds each time that a step pays it."""

    name: str
    seconds: float
    at: int = 1

    def check(self) -> None:
        """ValueError in a sentence where it is no term of a model."""
        if self.name not in COUNTS:
            raise ValueError(f"there is no term {self.name!r} of a step{meant(self.name, COUNTS)}")
        real(f"seconds of {self.name}", self.seconds, 0, _MOST_S, "s", exact=True)
        whole(f"at of {self.name}", self.at, 1, _MOST_AT, exact=True)

    def __str__(self) -> str:
        return WORDS[self.name].format(at=self.at)


class Spread(msgspec.Struct, frozen=True):
    """Measured over predicted: its quantiles at `RANKS`, and its mean, weighed by time."""

    quantiles: tuple[float, ...] = ()
    mean: float = 1.0

    def check(self, name: str) -> None:
        real(f"mean of {name}", self.mean, 0, _MOST_FACTOR, exact=True)
        if self.quantiles and len(self.quantiles) != len(RANKS):
            raise ValueError(
                f"{name} has {len(RANKS)} quantiles or none, not {len(self.quantiles)}"
            )
        least = 0.0
        for value in self.quantiles:
            least = real(f"a quantile of {name}", value, least, _MOST_FACTOR, exact=True)

    def table(self) -> list[float]:
        """A factor for each place of a distribution cut into equal parts; its mean is `mean`."""
        import numpy as np

        if not self.quantiles:
            return [self.mean] * _PLACES
        places = (np.arange(_PLACES) + 0.5) / _PLACES
        values = np.interp(places, RANKS, self.quantiles)
        if self.quantiles[0] == self.quantiles[-1]:
            return [self.quantiles[0]] * _PLACES
        found: list[float] = (values * (self.mean / float(values.mean()))).tolist()
        return found


class StepTimeModel(msgspec.Struct, frozen=True):
    """Seconds of a step by what it computes, and how far single steps are from that."""

    terms: tuple[StepTerm, ...]
    decodes: Spread = Spread()
    """Of steps that decode alone."""
    prefills: Spread = Spread()
    """Of steps with prefill in them."""
    correlation: float = 0.0
    """Of a step's rank among its like with that of the step before."""

    def check(self) -> None:
        """ValueError in a sentence where a number is none or out of its range."""
        for term in self.terms:
            term.check()
        self.decodes.check("decodes")
        self.prefills.check("prefills")
        real("correlation", self.correlation, 0, 1, exact=True)

    def seconds(self, work: StepWork) -> float:
        """The typical time of a step."""
        return self.fixed(work) + self.kv_s * work.kv_tokens

    def fixed(self, work: StepWork) -> float:
        """All of it but the KV that is read, which alone changes while the same requests decode."""
        total = 0.0
        for term in self.terms:
            if term.name != "kv_token":
                total += term.seconds * COUNTS[term.name](work, term.at)
        return total

    @property
    def kv_s(self) -> float:
        """Seconds for each KV token read."""
        return sum(term.seconds for term in self.terms if term.name == "kv_token")

    def fast_fixed(self) -> Callable[[StepWork], float]:
        """As `fixed`, to be called often; of decode alone it is kept by the number of rows."""
        kept: dict[int, float] = {}
        full = partial(_total, [
            (term.seconds, COUNTS[term.name], term.at)
            for term in self.terms if term.name != "kv_token"
        ])  # fmt: skip

        def fixed(work: StepWork) -> float:
            if work.prefill_rows:
                return full(work)
            rows = work.decode_rows
            found = kept.get(rows)
            if found is None:
                found = kept[rows] = full(work)
            return found

        return fixed


def _total(terms: list[tuple[float, Count, int]], work: StepWork) -> float:
    total = 0.0
    for seconds, count, at in terms:
        total += seconds * count(work, at)
    return total


class Ranks:
    """Places in a distribution, one for each step, of which each resembles the one before.

    They are drawn ahead by a seeded generator, and the same ones come again after 16,384 steps.
    """

    def __init__(self, correlation: float, seed: int) -> None:
        import numpy as np

        drawn = np.random.default_rng(seed % 2**64).standard_normal(_POOL).tolist()
        fresh, state = math.sqrt(1 - correlation**2), drawn[-1]
        places = self._places = [0] * _POOL
        for number, value in enumerate(drawn):
            state = correlation * state + fresh * value
            share = 0.5 * (1 + math.erf(state / math.sqrt(2)))
            places[number] = min(_PLACES - 1, int(share * _PLACES))
        self._next = 0

    def take(self) -> int:
        at = self._next
        self._next = (at + 1) % _POOL
        return self._places[at]

    def put_back(self) -> None:
        self._next = (self._next - 1) % _POOL
