"""What one request is like: its lengths, on whose account, what its prompt shares with others."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Many short, a few long: half are below `median`; cut off at `low` and `high`."""

    median: float
    sigma: float = 0.8
    low: int = 1
    high: int = 2048

    def __post_init__(self) -> None:
        if not (self.low >= 1 and self.low <= self.median <= self.high and self.sigma >= 0):
            raise ValueError(f"{self} needs 1 <= low <= median <= high and sigma from 0 up")

    def draw(self, rng: random.Random) -> int:
        drawn = math.exp(rng.gauss(math.log(self.median), self.sigma))
        return round(min(max(drawn, self.low), self.high))

    def __str__(self) -> str:
        return f"lognormal({self.median:g}, {self.sigma:g}, up to {self.high})"


Length = int | tuple[int, int] | LogNormal
"""Tokens: a fixed count, both ends of a uniform range, or a LogNormal."""


def draw(length: Length, rng: random.Random) -> int:
    if isinstance(length, LogNormal):
        return length.draw(rng)
    low, high = (length, length) if isinstance(length, int) else length
    return rng.randint(low, high)


def shortest(length: Length) -> int:
    if isinstance(length, LogNormal):
        return length.low
    return length if isinstance(length, int) else length[0]


def words(length: Length) -> str:
    if isinstance(length, int | LogNormal):
        return str(length)
    low, high = length
    return str(low) if low == high else f"{low}–{high}"


def check_length(name: str, length: Length) -> None:
    if isinstance(length, LogNormal):
        return
    ends = (length, length) if isinstance(length, int) else length
    whole = isinstance(ends, tuple | list) and all(isinstance(end, int) for end in ends)
    if not whole or len(ends) != 2 or not 1 <= ends[0] <= ends[1]:
        raise ValueError(f"{name} must be a count or a range (low, high) from 1 up")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One sort of request, and how often it comes among others (`weight`)."""

    weight: float = 1.0
    prompt_tokens: Length = 128
    """Of the whole prompt; in a chat, of each turn of the user's."""
    max_tokens: Length = 64
    tenant: str = "default"
    priority: int = 0
    ttft_slo_ms: float | None = None
    """Travels with the request, and counts for goodput in place of the run's own."""
    prefix_tokens: int = 0
    """So many of the prompt's first tokens are the same within a group of requests."""
    prefix_groups: int = 1
    turns: Length = 1
    """Of a chat: each turn's prompt is all that was said before, and something new."""
    think_s: float = 0.0
    """Between a reply of a chat and the user's next turn."""

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "max_tokens", "turns"):
            check_length(name, getattr(self, name))
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight must be above 0 and finite, not {self.weight}")
        if self.ttft_slo_ms is not None and not self.ttft_slo_ms > 0:
            raise ValueError(f"ttft_slo_ms must be above 0, not {self.ttft_slo_ms}")
        if self.prefix_groups < 1 or not 0 <= self.think_s < math.inf:
            raise ValueError("prefix_groups is 1 or more, think_s from 0 up")
        if not 0 <= self.prefix_tokens < shortest(self.prompt_tokens):
            raise ValueError("prefix_tokens must be fewer than the shortest prompt has")

    def __str__(self) -> str:
        text = f"{words(self.prompt_tokens)} tokens in, {words(self.max_tokens)} out"
        if self.prefix_tokens:
            text += f", {self.prefix_tokens} of them shared in {self.prefix_groups} groups"
        if self.turns != 1:
            text += f", {words(self.turns)} turns"
        return text


NAMED = {
    "short": Kind(prompt_tokens=64, max_tokens=64),
    "medium": Kind(prompt_tokens=200, max_tokens=200),
    "long": Kind(prompt_tokens=768, max_tokens=128),
    "ragged": Kind(
        prompt_tokens=LogNormal(128, high=768), max_tokens=LogNormal(64, high=256)
    ),
    "chat": Kind(prompt_tokens=(16, 48), max_tokens=48, turns=(2, 5), think_s=0.5),
    "shared": Kind(prompt_tokens=256, max_tokens=48, prefix_tokens=192, prefix_groups=4),
}
"""Kinds that a mix may name."""

Mix = str | Mapping[str, "Kind | float"]


def parse_mix(mix: Mix) -> dict[str, Kind]:
    """`long:30 short:70`, or the same as a mapping whose values are weights or Kinds."""
    if isinstance(mix, str):
        parts = [part.partition(":") for part in mix.replace(",", " ").split()]
        mix = {name: _weight(name, text) if colon else 1.0 for name, colon, text in parts}
    if not mix:
        raise ValueError("a mix names at least one kind: 'long:30 short:70'")
    kinds = {}
    for name, value in mix.items():
        if isinstance(value, Kind):
            kinds[name] = value
        elif name in NAMED:
            kinds[name] = replace(NAMED[name], weight=float(value))
        else:
            raise ValueError(f"there is no kind {name!r}; kinds: {', '.join(NAMED)}")
    return kinds


def _weight(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"the weight of {name!r} is a number, not {text!r}") from None
