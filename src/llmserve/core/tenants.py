"""A tenant's terms: its weight, and the limits that replace the general ones."""

from __future__ import annotations

import msgspec

from llmserve.core.bounds import BOUNDS
from llmserve.core.validation import Bounds

_MOST = 1e9
_BOUNDS = (
    *(
        Bounds(name, 0, _MOST, kind="real", above=True, optional=True)
        for name in ("weight", "rate_limit_rps", "rate_limit_tps")
    ),
    Bounds("max_active", 1, _MOST, optional=True),
    BOUNDS["ttft_slo_ms"],
)


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Weight and limits of one tenant. None takes the value of the knob of that name. Raises
    ValueError on a value out of range."""

    weight: float | None = None
    """Share under fair_share; the knob `tenant_weights` stands above it."""
    rate_limit_rps: float | None = None
    rate_limit_tps: float | None = None
    max_active: int | None = None
    ttft_slo_ms: float | None = None

    def __post_init__(self) -> None:
        for bounds in _BOUNDS:
            bounds.read(getattr(self, bounds.name), called=f"{bounds.name} of a tenant")


NONE = Terms()
