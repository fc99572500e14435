"""What the start-up options that engines share must lie within."""

from __future__ import annotations

from llmserve.bounded import whole
from llmserve.knobs import SPECS

MOST_TOKENS = 100_000_000
ANY_WHOLE = (-(2**63), 2**64 - 1)
"""What a message to another process can hold."""


def ceiling(name: str, value: object) -> int:
    """Of the knob of that name; ValueError where the knob could never come so far."""
    low, high = SPECS[name].low, SPECS[name].high
    assert low is not None  # every number has bounds
    assert high is not None
    return whole(f"{name}_ceiling", value, low, high)
