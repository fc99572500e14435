"""The waiting requests in the order of a policy: a heap of tenants, and a heap for each of them.

A pick costs a few heap operations however many wait. Under a user's function there is no order to
keep: it is shown all who may go.
"""

from __future__ import annotations

from typing import Protocol

from llmserve.core import Request
from llmserve.growing_heap import GrowingHeap, Key
from llmserve.knobs import Knobs
from llmserve.ledger import Ledger
from llmserve.lengths import Lengths
from llmserve.policies import POLICIES
from llmserve.user_policy import LedgerView, UserPolicy


class Line(Protocol):
    def add(self, request: Request, now: float) -> None: ...

    def remove(self, request: Request) -> None: ...

    def first(self, now: float) -> Request | None:
        """Who is first by the policy; tenants that were parked are passed over."""
        ...

    def park(self, tenant: str) -> None:
        """Pass this tenant over until `unpark`."""
        ...

    def unpark(self, tenant: str) -> None: ...

    def is_parked(self, tenant: str) -> bool: ...


class WaitingLine:
    """Requests waiting, under one policy. Build a new one when the policy changes."""

    def __init__(self, knobs: Knobs, ledger: Ledger, lengths: Lengths) -> None:
        self._policy = POLICIES["fifo" if knobs.policy == "custom" else knobs.policy]
        self._lengths = lengths if knobs.length_estimate == "learned" else None
        self._replies: dict[str, float] = {}
        self._knobs = knobs
        self._ledger = ledger
        self._now = 0.0
        self._parked: set[str] = set()
        self._requests: dict[str, Request] = {}
        self._lines: dict[str, GrowingHeap[str]] = {}
        self._tenants: GrowingHeap[str] = GrowingHeap(self._tenant_key)

    def add(self, request: Request, now: float) -> None:
        self._now = now
        self._requests[request.id] = request
        # asked once: what is learned meanwhile must not make a key shrink
        asked, lengths = float(request.sampling.max_tokens), self._lengths
        self._replies[request.id] = asked if lengths is None else lengths.expect(request)
        line = self._lines.get(request.tenant)
        if line is None:
            line = self._lines[request.tenant] = GrowingHeap(self._request_key)
        line.put(request.id)
        if request.tenant not in self._parked:
            self._tenants.put(request.tenant)

    def remove(self, request: Request) -> None:
        """Taken or given up; its heap forgets it when it would come to the top."""
        del self._requests[request.id], self._replies[request.id]
        line = self._lines[request.tenant]
        line.discard(request.id)
        if line.first() is None:
            del self._lines[request.tenant]
            self._tenants.discard(request.tenant)

    def first(self, now: float) -> Request | None:
        self._now = now
        tenant = self._tenants.first()
        head = self._lines[tenant].first() if tenant is not None else None
        return self._requests[head] if head is not None else None

    def park(self, tenant: str) -> None:
        self._parked.add(tenant)
        self._tenants.discard(tenant)

    def unpark(self, tenant: str) -> None:
        self._parked.discard(tenant)
        if tenant in self._lines:
            self._tenants.put(tenant)

    def is_parked(self, tenant: str) -> bool:
        return tenant in self._parked

    def _request_key(self, request_id: str) -> Key | None:
        request = self._requests.get(request_id)
        if request is None:
            return None
        return self._policy.within(request, self._knobs, self._now, self._replies[request_id])

    def _tenant_key(self, tenant: str) -> Key | None:
        line = self._lines.get(tenant)
        head = None if line is None else line.first()
        if head is None:
            return None
        if self._policy.across is not None:
            return (self._policy.across(self._ledger.account(tenant)),)
        return self._request_key(head)


class ChosenLine:
    """Requests waiting, in order of arrival; a user's function chooses among them."""

    def __init__(self, knobs: Knobs, ledger: Ledger, policy: UserPolicy) -> None:
        self._knobs = knobs
        self._ledger = ledger
        self._policy = policy
        self._parked: set[str] = set()
        self._requests: dict[str, Request] = {}

    def add(self, request: Request, now: float) -> None:
        self._requests[request.id] = request

    def remove(self, request: Request) -> None:
        del self._requests[request.id]

    def first(self, now: float) -> Request | None:
        """PolicyError where the function fails."""
        waiting = tuple(
            request for request in self._requests.values() if request.tenant not in self._parked
        )
        if not waiting:
            return None
        return self._policy.choose(waiting, LedgerView.of(self._ledger, now), self._knobs)

    def park(self, tenant: str) -> None:
        self._parked.add(tenant)

    def unpark(self, tenant: str) -> None:
        self._parked.discard(tenant)

    def is_parked(self, tenant: str) -> bool:
        return tenant in self._parked
