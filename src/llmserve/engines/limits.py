"""Limits of an engine's start-up options and live knobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmserve.core.knobs import SPECS, Clamp, Knobs
from llmserve.core.validation import whole

MOST_TOKENS = 100_000_000
ANY_WHOLE = (-(2**63), 2**64 - 1)
"""What a message to another process can hold."""


def ceiling(name: str, value: object) -> int:
    """Return the knob's ceiling; ValueError where the knob could never come so far."""
    low, high = SPECS[name].low, SPECS[name].high
    assert low is not None  # every number has bounds
    assert high is not None
    return whole(f"{name}_ceiling", value, low, high)


def clamp(knobs: Knobs, ceilings: Mapping[str, int]) -> tuple[Knobs, tuple[Clamp, ...]]:
    """Return `knobs` with none above its ceiling, and what that changed."""
    clamps = []
    for name, ceiling in ceilings.items():
        asked = getattr(knobs, name)
        if asked > ceiling:
            clamps.append(Clamp(name, asked, ceiling, f"started with {name}_ceiling={ceiling}"))
    got: dict[str, Any] = {one.name: one.got for one in clamps}
    return replace(knobs, **got), tuple(clamps)
