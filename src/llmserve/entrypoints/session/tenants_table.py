"""Tenants in a table: the terms of each, what it holds now, what became of its requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmserve.core.tenants import NONE
from llmserve.observe.requests import RequestRow
from llmserve.serving.service import Service

if TYPE_CHECKING:
    import pandas as pd


class TenantStanding(NamedTuple):
    tenant: str
    weight: float
    rate_limit_rps: float | None
    rate_limit_tps: float | None
    max_active: int | None
    ttft_slo_ms: float
    """Limits in force: the tenant's own, else the knobs'."""
    waiting: int
    active: int
    tokens_in_flight: int
    served: float
    """Weighted tokens over its weight, as fair_share counts them."""


async def standings(service: Service) -> list[TenantStanding]:
    """Rows of tenants with terms and of those that sent requests; on the loop's thread."""
    knobs, ledger = service.board.current, service.ledger
    standing = []
    for tenant in sorted({*service.terms, *ledger.tenants}):
        terms, usage = service.terms.get(tenant, NONE), ledger.usage(tenant)
        standing.append(
            TenantStanding(
                tenant,
                service.weight(tenant),
                terms.rate_limit_rps or knobs.rate_limit_rps,
                terms.rate_limit_tps or knobs.rate_limit_tps,
                terms.max_active or knobs.max_active_per_tenant,
                terms.ttft_slo_ms or knobs.ttft_slo_ms,
                usage.waiting,
                usage.active,
                usage.tokens_in_flight,
                usage.counter,
            )
        )
    return standing


def tenants_frame(standing: Sequence[TenantStanding], rows: Sequence[RequestRow]) -> pd.DataFrame:
    """`rows` are of the latest requests: the figures of what became of them are of these."""
    import pandas as pd

    lines = []
    for one in standing:
        own = [row for row in rows if row.tenant == one.tenant]
        done = [row for row in own if row.state == "done"]
        waits = [row.queue_s for row in own if row.queue_s is not None]
        firsts = [row.ttft_s for row in own if row.ttft_s is not None]
        lines.append(
            {
                **one._asdict(),
                "done": len(done),
                "refused": sum(row.state == "refused" for row in own),
                "tokens": sum(row.completion_tokens for row in own),
                "queue_mean_s": sum(waits) / len(waits) if waits else None,
                "ttft_mean_s": sum(firsts) / len(firsts) if firsts else None,
            }
        )
    columns = [*TenantStanding._fields, "done", "refused", "tokens", "queue_mean_s", "ttft_mean_s"]
    return pd.DataFrame(lines, columns=columns).set_index("tenant")
