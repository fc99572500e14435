"""The waiting requests in the order of a policy: a heap of tenants, and a heap for each of them.

A pick costs a few heap operations however many wait. Under a user's function there is no order to
keep: it is shown all who may go. Heaps hold ids; what they stand for is the scheduler's `Entry`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Mapping
from operator import attrgetter
from typing import Protocol

from llmserve.core.knobs import Knobs
from llmserve.core.types import Request
from llmserve.scheduling.entry import Entry
from llmserve.scheduling.lazy_heap import Key, LazyHeap, RekeyedHeap
from llmserve.scheduling.ledger import OUTPUT_WEIGHT, PROMPT_WEIGHT, Ledger
from llmserve.scheduling.output_length import OutputLengths
from llmserve.scheduling.policies import POLICIES
from llmserve.scheduling.user_policy import LedgerView, UserPolicy

order_of = attrgetter(
    "policy", "priority_aging_s", "shortest_aging_tps", "ttft_slo_ms", "length_estimate",
    "tenant_weights", "admission_slo",
)  # fmt: skip
"""The knobs that a queue is built by; where another changes, `turn` will do."""


class TenantQueue(Protocol):
    def add(self, entry: Entry, now: float) -> None:
        """Queue a request that waits from now on."""
        ...

    def remove(self, entry: Entry) -> None:
        """Forget a request that waits no more."""
        ...

    def first(self, now: float) -> Entry | None:
        """The first request by the policy; tenants that were parked are passed over."""
        ...

    def park(self, tenant: str) -> None:
        """Pass this tenant over until `unpark`."""
        ...

    def unpark(self, tenant: str) -> None: ...

    def is_parked(self, tenant: str) -> bool: ...

    def turn(self, knobs: Knobs) -> None:
        """Use these knobs from now on, which differ in nothing of `order_of`; no tenant is parked
        any more."""
        ...

    def ahead(self, request: Request, now: float) -> int:
        """How many waiting requests precede one that comes now, if none came after it."""
        ...


class RequestQueue:
    """Requests waiting, under one policy. Build a new one when the policy changes.

    `entries` and `waiting`, the ids of those of them that wait, are the scheduler's own.
    """

    def __init__(
        self,
        knobs: Knobs,
        ledger: Ledger,
        lengths: OutputLengths,
        weight: Callable[[str], float],
        entries: Mapping[str, Entry],
        waiting: Collection[str],
    ) -> None:
        self._policy = POLICIES["fifo" if knobs.policy == "custom" else knobs.policy]
        self._lengths = lengths if knobs.length_estimate == "learned" else None
        self._knobs = knobs
        self._ledger = ledger
        self._weight = weight
        self._entries = entries
        self._waiting = waiting
        self._now = 0.0
        self._ranks = None if knobs.admission_slo == "off" else _Ranks()
        self._parked: set[str] = set()
        self._heaps: dict[str, LazyHeap[str]] = {}
        self._tenants: RekeyedHeap[str] = RekeyedHeap(self._tenant_key)

    def add(self, entry: Entry, now: float) -> None:
        self._now = now
        request, tenant = entry.request, entry.request.tenant
        entry.reply_tokens = self._reply(request)
        if self._ranks is not None:
            entry.rank = self._rank(request, entry.reply_tokens)
            self._ranks.add(self._group(request), entry.rank)
        heap = self._heaps.get(tenant)
        moves = heap is None
        if heap is None:
            heap = self._heaps[tenant] = LazyHeap(self._request_key)
        heap.put(request.id)
        if not moves and self._policy.across is None:
            moves = heap.first() == request.id  # its key is its tenant's now
        if moves and tenant not in self._parked:
            self._tenants.put(tenant)

    def remove(self, entry: Entry) -> None:
        request, tenant = entry.request, entry.request.tenant
        if entry.rank is not None and self._ranks is not None:
            self._ranks.remove(self._group(request), entry.rank)
            entry.rank = None
        heap = self._heaps[tenant]
        heap.discard(request.id)
        if heap.first() is None:
            del self._heaps[tenant]
            self._tenants.discard(tenant)

    def first(self, now: float) -> Entry | None:
        self._now = now
        tenant = self._tenants.first()
        head = None if tenant is None else self._heaps[tenant].first()
        return None if head is None else self._entries[head]

    def park(self, tenant: str) -> None:
        self._parked.add(tenant)
        self._tenants.discard(tenant)

    def unpark(self, tenant: str) -> None:
        self._parked.discard(tenant)
        if tenant in self._heaps:
            self._tenants.put(tenant)

    def is_parked(self, tenant: str) -> bool:
        return tenant in self._parked

    def turn(self, knobs: Knobs) -> None:
        self._knobs = knobs
        for tenant in list(self._parked):
            self.unpark(tenant)

    def ahead(self, request: Request, now: float) -> int:
        """Count by keys, in O(log n), and under fair_share in O(tenants that wait); all who
        wait where no ranks are kept, for none are needed while `admission_slo` is off.

        Those whose tenant is at its limit count, though they may have to let this one pass.
        """
        if self._ranks is None:
            return len(self._waiting)
        reply = self._reply(request)
        lost = None if self._policy.lost is None else self._policy.lost(now)
        before = self._ranks.before(self._group(request), self._rank(request, reply), lost)
        if self._policy.across is None:
            return before
        cost = PROMPT_WEIGHT * len(request.prompt_ids) + OUTPUT_WEIGHT * reply
        return before + self._of_others(request.tenant, before, cost)

    def _of_others(self, tenant: str, before: int, cost: float) -> int:
        """Of other tenants, until this one has been served so many: as if each request cost the
        same, those that bring their tenant up to the service that this one will have then."""
        own, waiting = self._ledger.usage(tenant), self._ledger.waiting
        least = min((usage.counter for usage in waiting.values()), default=0.0)
        start = own.counter if own.waiting else max(own.counter, least)
        level = start + before * cost / self._weight(tenant)
        count = 0
        for other, usage in waiting.items():
            if other != tenant and usage.counter <= level:
                turns = (level - usage.counter) * self._weight(other) / cost
                count += min(usage.waiting, math.floor(turns) + 1)
        return count

    def _reply(self, request: Request) -> float:
        if self._lengths is None:
            return float(request.sampling.max_tokens)
        return self._lengths.expect(request)

    def _group(self, request: Request) -> str:
        """Whose keys its own is compared with: under fair_share its tenant's."""
        return "" if self._policy.across is None else request.tenant

    def _rank(self, request: Request, reply: float) -> Key:
        """The key it came with."""
        return self._policy.within(request, self._knobs, request.arrival, reply)

    def _request_key(self, request_id: str) -> Key | None:
        entry = self._entries.get(request_id)
        if entry is None or entry.status != "waiting":
            return None
        return self._policy.within(entry.request, self._knobs, self._now, entry.reply_tokens)

    def _tenant_key(self, tenant: str) -> Key | None:
        heap = self._heaps.get(tenant)
        head = None if heap is None else heap.first()
        if head is None:
            return None
        if self._policy.across is not None:
            return (self._policy.across(self._ledger.usage(tenant)),)
        return self._request_key(head)


class _Ranks:
    """Sorted keys, to count those below one. A deletion or insertion moves memory of 8 bytes a
    key: a few µs among 10,000."""

    def __init__(self) -> None:
        self._keys: dict[str, list[Key]] = {}

    def add(self, group: str, key: Key) -> None:
        insort(self._keys.setdefault(group, []), key)

    def remove(self, group: str, key: Key) -> None:
        keys = self._keys[group]
        del keys[bisect_left(keys, key)]
        if not keys:
            del self._keys[group]

    def before(self, group: str, key: Key, lost: Key | None) -> int:
        """Equal ones came first and go first."""
        keys = self._keys.get(group, [])
        gone = 0 if lost is None else bisect_left(keys, lost)
        if lost is not None and key < lost:
            return len(keys)  # it is lost itself
        return bisect_right(keys, key) - gone


class UserPolicyQueue:
    """Requests waiting, in order of arrival; a user's function chooses among them.

    `entries` and `waiting` are as of `RequestQueue`, and say all there is to know.
    """

    def __init__(
        self,
        knobs: Knobs,
        ledger: Ledger,
        policy: UserPolicy,
        entries: Mapping[str, Entry],
        waiting: Collection[str],
    ) -> None:
        self._knobs = knobs
        self._ledger = ledger
        self._policy = policy
        self._entries = entries
        self._waiting = waiting
        self._parked: set[str] = set()

    def add(self, entry: Entry, now: float) -> None: ...

    def remove(self, entry: Entry) -> None: ...

    def first(self, now: float) -> Entry | None:
        """PolicyError where the function fails."""
        waiting = tuple(
            request
            for request in (self._entries[id].request for id in self._waiting)
            if request.tenant not in self._parked
        )
        if not waiting:
            return None
        chosen = self._policy.choose(waiting, LedgerView.of(self._ledger, now), self._knobs)
        return self._entries[chosen.id]

    def park(self, tenant: str) -> None:
        self._parked.add(tenant)

    def unpark(self, tenant: str) -> None:
        self._parked.discard(tenant)

    def is_parked(self, tenant: str) -> bool:
        return tenant in self._parked

    def turn(self, knobs: Knobs) -> None:
        self._knobs = knobs
        self._parked.clear()

    def ahead(self, request: Request, now: float) -> int:
        """All of them: what the function would say is not known before."""
        return len(self._waiting)
