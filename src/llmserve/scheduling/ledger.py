"""What each tenant has been given, and has in the engine now: what policies and limits share.

The virtual token counter follows Sheng et al., "Fairness in Serving Large Language Models"
(arXiv 2401.00588), algorithm 2: prompt tokens are charged when a request is dispatched, generated
ones as they come, both divided by the tenant's weight; a tenant that returns is lifted to the
least served of those who wait, or idle time would become credit.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from llmserve.core.types import Request
from llmserve.scheduling.lazy_heap import Key, RekeyedHeap

PROMPT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
"""What a prompt and a generated token cost, as in the paper's evaluation."""

_TENANTS = 10_000
"""Tenants kept; beyond that, the longest idle one is forgotten (and would return lifted)."""


@dataclass(slots=True)
class TokenBucket:
    """A token bucket: `burst` at most, refilled at `rate` per second; starts full."""

    level: float | None = None
    stamp: float = 0.0

    def refill(self, rate: float, burst: float, now: float) -> float:
        """Tokens there now, after refilling."""
        level = burst if self.level is None else self.level + (now - self.stamp) * rate
        self.level, self.stamp = min(level, burst), now
        return self.level

    def take(self, amount: float = 1.0) -> None:
        assert self.level is not None, "refill first"
        self.level -= amount


@dataclass(slots=True)
class TenantUsage:
    """What one tenant uses. `counter` is its service so far in weighted tokens."""

    counter: float = 0.0
    waiting: int = 0
    active: int = 0
    tokens_in_flight: int = 0
    """Prompt and max_tokens of its active requests."""
    bucket: TokenBucket = field(default_factory=TokenBucket)
    """Requests it may still send by `rate_limit_rps`."""
    token_bucket: TokenBucket = field(default_factory=TokenBucket)
    """Tokens it may still ask for by `rate_limit_tps`; below 0 after one larger than the burst."""

    @property
    def idle(self) -> bool:
        return self.waiting == 0 and self.active == 0

    def emitted(self, tokens: int, weight: float) -> None:
        """Count tokens given to one of its requests as service."""
        self.counter += OUTPUT_WEIGHT * tokens / weight

    def emitted_singly(self, times: int, weight: float) -> None:
        """As `emitted` so many times with one token: rounded as often."""
        each = OUTPUT_WEIGHT / weight
        if each.is_integer() and self.counter.is_integer():
            self.counter += each * times
            return
        for _ in range(times):
            self.counter += each


class Ledger:
    """Usage by tenant, the least recently touched first."""

    def __init__(self) -> None:
        self._usages: OrderedDict[str, TenantUsage] = OrderedDict()
        self._waiting: dict[str, TenantUsage] = {}
        self._least: RekeyedHeap[str] = RekeyedHeap(self._service_of_waiting)
        self._last_served = 0.0
        self.tokens_in_flight = 0
        """Prompt and max_tokens of everything dispatched and not finished."""
        self._longest_prompt = 0
        self._most_in_flight = 0

    def usage(self, tenant: str) -> TenantUsage:
        usage = self._usages.get(tenant)
        if usage is None:
            usage = self._usages[tenant] = TenantUsage()
            self._forget(tenant)
        return usage

    @property
    def tenants(self) -> list[str]:
        """Every tenant that has a usage record."""
        return list(self._usages)

    @property
    def waiting(self) -> dict[str, TenantUsage]:
        """Tenants that have a waiting request."""
        return self._waiting

    def arrived(self, request: Request) -> None:
        usage = self.usage(request.tenant)
        if usage.waiting == 0:
            least = self._least.first()
            floor = self._last_served if least is None else self._waiting[least].counter
            usage.counter = max(usage.counter, floor)
            self._waiting[request.tenant] = usage
            self._least.put(request.tenant)
        usage.waiting += 1
        self._usages.move_to_end(request.tenant)

    def left_queue(self, request: Request) -> None:
        """Note that a request was dispatched, or given up while waiting."""
        usage = self.usage(request.tenant)
        usage.waiting -= 1
        if usage.waiting == 0:
            del self._waiting[request.tenant]
            self._least.discard(request.tenant)
            self._last_served = usage.counter

    def dispatched(self, request: Request, weight: float) -> None:
        usage = self.usage(request.tenant)
        usage.active += 1
        usage.counter += PROMPT_WEIGHT * len(request.prompt_ids) / weight
        tokens = footprint(request)
        usage.tokens_in_flight += tokens
        self.tokens_in_flight += tokens
        self._longest_prompt = max(self._longest_prompt, len(request.prompt_ids))
        self._most_in_flight = max(self._most_in_flight, self.tokens_in_flight)

    def finished(self, request: Request) -> None:
        usage, tokens = self.usage(request.tenant), footprint(request)
        usage.active -= 1
        usage.tokens_in_flight -= tokens
        self.tokens_in_flight -= tokens

    def level(self) -> None:
        """Reset all service to zero: what was given under another policy is no tenant's debt."""
        for usage in self._usages.values():
            usage.counter = 0.0
        self._last_served = 0.0
        for tenant in self._waiting:
            self._least.put(tenant)

    def check(self, waiting: Mapping[str, int], active: Sequence[Request]) -> None:
        """Assert that it counts just these: how many wait by tenant, and who is active."""
        counts = {tenant: usage.waiting for tenant, usage in self._waiting.items()}
        assert counts == waiting, "the ledger miscounts waiting requests"
        counts = {name: one.active for name, one in self._usages.items() if one.active}
        assert counts == Counter(one.tenant for one in active), "the ledger miscounts the active"
        assert self.tokens_in_flight == sum(map(footprint, active)), "tokens in flight miscounted"

    def gap(self) -> float:
        """Largest difference of service between two tenants who both wait, in weighted tokens."""
        counters = [usage.counter for usage in self._waiting.values()]
        return max(counters) - min(counters) if len(counters) > 1 else 0.0

    def bound(self, lightest: float = 1.0) -> float:
        """What the paper allows that gap to be: 2·max(w_p·L_input, w_q·M) over the least weight.

        L_input is the longest prompt dispatched so far, M the most tokens that were in flight.
        It holds under fair_share while no limit of a tenant's own keeps its requests back.
        """
        longest = PROMPT_WEIGHT * self._longest_prompt
        return 2 * max(longest, OUTPUT_WEIGHT * self._most_in_flight) / lightest

    def _service_of_waiting(self, tenant: str) -> Key | None:
        usage = self._waiting.get(tenant)
        return None if usage is None else (usage.counter,)

    def _forget(self, new: str) -> None:
        """Drop the longest idle tenants beyond the bound, but never `new`."""
        surplus = len(self._usages) - _TENANTS
        if surplus > 0:
            idle = (name for name, one in self._usages.items() if one.idle and name != new)
            for tenant in list(islice(idle, surplus)):
                del self._usages[tenant]


def footprint(request: Request) -> int:
    """Tokens whose KV the request may come to need."""
    return len(request.prompt_ids) + request.sampling.max_tokens
