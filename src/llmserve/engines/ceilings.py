"""Ceilings of live knobs, fixed at an engine's start because memory was laid out for them."""

from __future__ import annotations

from collections.abc import Mapping

from llmserve.knobs import Clamp, Knobs


def clamp(knobs: Knobs, ceilings: Mapping[str, int]) -> tuple[Knobs, tuple[Clamp, ...]]:
    """`knobs` with none above its ceiling, and what that changed."""
    clamps = []
    for name, ceiling in ceilings.items():
        asked = getattr(knobs, name)
        if asked > ceiling:
            clamps.append(Clamp(name, asked, ceiling, f"started with {name}_ceiling={ceiling}"))
    return knobs.changed({one.name: one.got for one in clamps}), tuple(clamps)
