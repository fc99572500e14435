"""What is agreed with a tenant: its weight and the limits that stand in for the general ones."""

from __future__ import annotations

import msgspec

from llmserve.core.validation import shown

LONGEST_NAME = 128
NAMES = f"a tenant is 1 to {LONGEST_NAME} printable characters"


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """None takes what the knob of that name says. Raises ValueError on a value out of range."""

    weight: float | None = None
    """Share under fair_share; the knob `tenant_weights` stands above it."""
    rate_limit_rps: float | None = None
    rate_limit_tps: float | None = None
    max_active: int | None = None
    ttft_slo_ms: float | None = None

    def __post_init__(self) -> None:
        for name in Terms.__struct_fields__:
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e9:
                bounds = "above 0 and below 1e9"
                raise ValueError(f"{name} of a tenant must be {bounds}, not {shown(value)}")


NONE = Terms()


def is_name(tenant: str) -> bool:
    """Metrics, logs and traces hold it as text: half of a surrogate pair would break them."""
    return 0 < len(tenant) <= LONGEST_NAME and tenant.isprintable()
