"""Scheduling policies: a policy is a key over a waiting request; the smallest is dispatched first.

The scheduler keeps the requests of each tenant in a heap by `within`, and the tenants in a heap by
`across`, or by their first request where there is none. It asks for a key again only when an entry
comes to the top, so a key may grow while a request waits, and must never shrink.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from llmserve.core.knobs import Knobs, PolicyName
from llmserve.core.types import Request
from llmserve.scheduling.lazy_heap import Key
from llmserve.scheduling.ledger import TenantUsage


class Policy(NamedTuple):
    within: Callable[[Request, Knobs, float, float], Key]
    """Order among the requests of one tenant, at a time, given the reply's expected length."""
    across: Callable[[TenantUsage], float] | None = None
    """Order among the tenants; None takes their first requests' keys."""
    lost: Callable[[float], Key] | None = None
    """Requests that came with a key below this are by now behind all others; None where none
    are."""


def fifo(request: Request, knobs: Knobs, now: float, reply: float) -> Key:
    return (request.arrival,)


def priority(request: Request, knobs: Knobs, now: float, reply: float) -> Key:
    """Lower class first; `priority_aging_s` of waiting are worth one class.

    All age alike, so comparing `priority - waited/aging` at any time is comparing
    `arrival + priority·aging`. Hence the bound: a request of class p is overtaken only by those of
    class q < p that arrive less than (p − q)·aging after it. None is strict priority, no bound.
    """
    if knobs.priority_aging_s is None:
        return float(request.priority), request.arrival
    return request.arrival + request.priority * knobs.priority_aging_s, request.arrival


def shortest_first(request: Request, knobs: Knobs, now: float, reply: float) -> Key:
    """Fewest tokens left to compute first: the prompt and the expected reply (`output_length.py`).

    A second of waiting is worth `shortest_aging_tps` tokens: the bound is as that of `priority`.
    """
    expected = len(request.prompt_ids) + reply
    return expected + request.arrival * knobs.shortest_aging_tps, request.arrival


def deadline(request: Request, knobs: Knobs, now: float, reply: float) -> Key:
    """Earliest TTFT deadline first; those already late go behind those still savable."""
    slo_ms = knobs.ttft_slo_ms if request.ttft_slo_ms is None else request.ttft_slo_ms
    due = request.arrival + slo_ms / 1e3
    return (1.0, request.arrival) if now > due else (0.0, due)


def _past(now: float) -> Key:
    return 0.0, now


def _service(usage: TenantUsage) -> float:
    return usage.counter


# `custom` is none of these: a user's function sees all who wait at once (`user_policy.py`)
POLICIES: dict[PolicyName, Policy] = {
    "fifo": Policy(fifo),
    "priority": Policy(priority),
    "fair_share": Policy(priority, across=_service),
    "shortest_first": Policy(shortest_first),
    "deadline": Policy(deadline, lost=_past),
}
