"""Kinds of request: their lengths, their tenant, and what their prompts share with others."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from llmserve.core.bounds import BOUNDS, SENDER
from llmserve.core.validation import Bounds, meant, out_of, plain, real, whole
from llmserve.engines.limits import MOST_TOKENS


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Many short, a few long: half are below `median`; cut off at `low` and `high`."""

    median: float
    sigma: float = 0.8
    low: int = 1
    high: int = 2048

    def __post_init__(self) -> None:
        whole("low", self.low, 1, MOST_TOKENS)
        whole("high", self.high, self.low, MOST_TOKENS)
        real("median", self.median, self.low, self.high)
        real("sigma", self.sigma, 0)

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


def read_length(bounds: Bounds, given: Any) -> Length:
    """A count or a range as Python's own numbers; ValueError names the field."""
    if isinstance(given, LogNormal):
        bounds.read(given.high)
        return given
    own = plain(given)
    if not isinstance(own, list | tuple) or len(own) != 2:
        count: int = bounds.read(own)
        return count
    low, high = (bounds.read(end) for end in own)
    if low > high:
        raise out_of(bounds.name, "a range from low to high", own)
    return low, high


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
        for name, read in KIND.items():
            object.__setattr__(self, name, read(getattr(self, name)))
        most = shortest(self.prompt_tokens) - 1
        unit = "tokens (the shortest prompt has one more)"
        whole("prefix_tokens", self.prefix_tokens, 0, most, unit, exact=True)

    def __str__(self) -> str:
        text = f"{words(self.prompt_tokens)} tokens in, {words(self.max_tokens)} out"
        if self.prefix_tokens:
            text += f", {self.prefix_tokens} of them shared in {self.prefix_groups} groups"
        if self.turns != 1:
            text += f", {words(self.turns)} turns"
        return text


KIND: dict[str, Callable[[Any], Any]] = {
    "weight": Bounds("weight", 0, math.inf, kind="real", above=True).read,
    "prompt_tokens": partial(read_length, Bounds("prompt_tokens", 1, MOST_TOKENS, "tokens")),
    "max_tokens": partial(read_length, BOUNDS["max_tokens"]),
    **SENDER,
    "prefix_tokens": Bounds("prefix_tokens", 0, MOST_TOKENS, "tokens").read,
    "prefix_groups": Bounds("prefix_groups", 1, 1_000_000).read,
    "turns": partial(read_length, Bounds("turns", 1, 1_000_000)),
    "think_s": Bounds("think_s", 0, math.inf, "s", kind="real").read,
}
"""Readers of a kind's fields."""

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

Mix = str | Mapping[str, "Kind | float | str"]


def parse_mix(mix: Mix) -> dict[str, Kind]:
    """`long:30 short:70`, or the same as a mapping whose values are weights or Kinds."""
    if isinstance(mix, str):
        parts = [part.partition(":") for part in mix.replace(",", " ").split()]
        mix = {name: text if colon else 1.0 for name, colon, text in parts}
    if not mix:
        raise ValueError("a mix names at least one kind: 'long:30 short:70'")
    kinds = {}
    for name, value in mix.items():
        if isinstance(value, Kind):
            kinds[name] = value
        elif name in NAMED:
            weight = real(f"the weight of {name!r}", value, 0, above=True)
            kinds[name] = replace(NAMED[name], weight=weight)
        else:
            raise ValueError(f"there is no kind {name!r}{meant(name, NAMED, called='kinds:')}")
    return kinds
