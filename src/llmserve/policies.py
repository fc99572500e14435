"""Who goes next. A policy is a key over a waiting request; the smallest goes first.

A key may depend on the request and the knobs, not on the time: the order of two waiting requests
then never changes, and the scheduler keeps a heap instead of sorting at each pick.
"""

from __future__ import annotations

from collections.abc import Callable

from llmserve.core import Request
from llmserve.knobs import Knobs, PolicyName

Key = tuple[float, float]
Policy = Callable[[Request, Knobs], Key]


def fifo(request: Request, knobs: Knobs) -> Key:
    return request.arrival, 0.0


def priority(request: Request, knobs: Knobs) -> Key:
    """Lower class first; `priority_aging_s` of waiting are worth one class.

    All age alike, so comparing `priority - waited/aging` at any time is comparing
    `arrival + priority·aging`. Hence the bound: a request of class p is overtaken only by those of
    class q < p that arrive less than (p − q)·aging after it. None is strict priority, no bound.
    """
    if knobs.priority_aging_s is None:
        return float(request.priority), request.arrival
    return request.arrival + request.priority * knobs.priority_aging_s, request.arrival


POLICIES: dict[PolicyName, Policy] = {"fifo": fifo, "priority": priority}
