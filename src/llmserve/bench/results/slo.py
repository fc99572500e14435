"""Slo: what a user calls good enough; goodput counts the requests that were."""

from __future__ import annotations

import msgspec

from llmserve.core.quantities import duration
from llmserve.core.validation import real, unlike


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """Upper limits, each of one request; None where there is none."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    def __post_init__(self) -> None:
        for name, limit in msgspec.structs.asdict(self).items():
            if limit is not None:
                real(f"{name} of an SLO", limit, 0, unit="ms", above=True, exact=True)

    def met(
        self, ttft_s: float | None, tpot_s: float | None, e2e_s: float,
        own_ttft_ms: float | None = None,
    ) -> bool:  # fmt: skip
        """`own_ttft_ms`: the request's own limit, in place of this one."""
        ttft_ms = self.ttft_ms if own_ttft_ms is None else own_ttft_ms
        limits = ((ttft_ms, ttft_s), (self.tpot_ms, tpot_s), (self.e2e_ms, e2e_s))
        return all(
            limit is None or value is None or value * 1e3 <= limit for limit, value in limits
        )

    def __str__(self) -> str:
        named = msgspec.structs.asdict(self).items()
        limits = [
            f"{name.removesuffix('_ms').upper()} {duration(limit / 1e3)}"
            for name, limit in named
            if limit is not None
        ]
        return " and ".join(limits) or "each request's own"


def parse_slo(slo: Slo | str | None) -> Slo | None:
    """`ttft:200 tpot:50`, in milliseconds."""
    if slo is None or isinstance(slo, Slo):
        return slo
    limits = {}
    for part in slo.replace(",", " ").replace("=", ":").split():
        name, _, value = part.partition(":")
        if name not in ("ttft", "tpot", "e2e"):
            raise unlike("a limit of an SLO", "ttft, tpot or e2e (ttft:200 tpot:50)", name)
        limits[f"{name}_ms"] = real(f"the limit of {name}", value, 0, unit="ms", above=True)
    if not limits:
        raise ValueError("an SLO names at least one limit: ttft:200 tpot:50")
    return Slo(**limits)
