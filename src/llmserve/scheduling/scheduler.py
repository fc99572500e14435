"""The front scheduler: who is handed to the engine next. No asyncio, no clock.

Invariants (`check`): every request offered and accepted is in exactly one of waiting and active
until it is finished, dropped or expired; no cap is exceeded but by lowering it; the ledger counts
exactly what waits and runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from llmserve.core.knobs import Knobs, weights_of
from llmserve.core.tenants import NONE, Terms
from llmserve.core.types import Request, WaitReason
from llmserve.scheduling.admission import (
    Accepted,
    AdmissionState,
    Rejected,
    admit,
    admit_kept,
    predicted_ttft_s,
)
from llmserve.scheduling.ledger import Ledger, footprint
from llmserve.scheduling.output_length import OutputLengths
from llmserve.scheduling.queue import RequestQueue, TenantQueue, UserPolicyQueue, order_of
from llmserve.scheduling.user_policy import PolicyError, UserPolicy
from llmserve.scheduling.wait_estimate import WaitEstimate
from llmserve.scheduling.wait_reasons import WaitReasons


class Expired(NamedTuple):
    queued_too_long: list[Request]
    lived_too_long: list[Request]


class Fairness(NamedTuple):
    gap: float
    bound: float
    tenants: int


class Scheduler:
    def __init__(
        self,
        max_model_len: int,
        terms: Mapping[str, Terms] | None = None,
        kv_capacity_tokens: int = 0,
    ) -> None:
        """`terms` are of tenants with some of their own. Without KV there is no share of it."""
        self.max_model_len = max_model_len
        self.kv_capacity_tokens = kv_capacity_tokens
        self.user_policy: UserPolicy | None = None
        self._terms = terms or {}
        self._waiting: dict[str, Request] = {}  # in order of offering
        self._active: dict[str, Request] = {}
        self._offered: dict[str, float] = {}  # both of the above, in order of offering
        self._queue_since: dict[str, float] = {}
        self._ledger = Ledger()
        self._knobs = Knobs()
        self._lengths = OutputLengths()
        self._pace = WaitEstimate()
        self._weights: dict[str, float] = {}
        self._line: TenantQueue = RequestQueue(
            self._knobs, self._ledger, self._lengths, self.weight
        )
        self._emitted: dict[str, int] = {}  # of the active
        self._charged: set[str] = set()  # who drew from a bucket of tokens
        self._broken: PolicyError | None = None
        self._holds = WaitReasons()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    def load(self, request: Request, knobs: Knobs, now: float) -> AdmissionState:
        terms = self._terms.get(request.tenant, NONE)
        return AdmissionState(
            len(self._waiting),
            len(self._active),
            self.max_model_len,
            self._ledger.account(request.tenant),
            self._line.ahead(request, now),
            self._pace.per_s(now),
            self._pace.first_token_s,
            self._pace.margin_s,
            terms.rate_limit_rps or knobs.rate_limit_rps,
            terms.rate_limit_tps or knobs.rate_limit_tps,
        )

    def free_per_s(self, now: float) -> float | None:
        """Places that come free each second, as lately measured."""
        return self._pace.per_s(now)

    def weight(self, tenant: str) -> float:
        """By the knob, else by the tenant's terms, else 1."""
        weight = self._weights.get(tenant)
        return weight or self._terms.get(tenant, NONE).weight or 1.0

    def fairness(self) -> Fairness | None:
        """None unless the policy is fair_share and two tenants or more wait."""
        waiting = self._ledger.waiting
        if self._knobs.policy != "fair_share" or len(waiting) < 2:
            return None
        lightest = min(self.weight(tenant) for tenant in waiting)
        return Fairness(self._ledger.gap(), self._ledger.bound(lightest), len(waiting))

    def agree(self, terms: Mapping[str, Terms], now: float) -> None:
        """Other terms from now on, for who waits too."""
        self._terms = terms
        if self._knobs.policy == "fair_share":
            self._ledger.level()
        self._order(now)

    def use(self, policy: UserPolicy | None, now: float) -> None:
        """What `policy=custom` means from now on; fifo where it is None."""
        self.user_policy = policy
        self._order(now)

    def take_broken(self) -> PolicyError | None:
        """Why the user's policy was removed, once."""
        broken, self._broken = self._broken, None
        return broken

    def offer(self, request: Request, knobs: Knobs, now: float) -> Accepted | Rejected:
        """Take the request into the waiting set, or refuse it. ValueError on a live id."""
        if request.id in self._offered:
            raise ValueError(f"request id {request.id} is already here")
        self._turn(knobs, now)
        load = self.load(request, knobs, now)
        verdict = admit(request, load, knobs, now)
        if isinstance(verdict, Accepted):
            if load.rate_limit_tps is not None:
                self._charged.add(request.id)
            seconds = predicted_ttft_s(load, knobs) if load.must_wait(knobs) else None
            if knobs.admission_slo != "off" and seconds is not None:
                self._pace.predicted(request.id, now + seconds)
            self._waiting[request.id] = request
            self._offered[request.id] = self._queue_since[request.id] = now
            self._ledger.arrived(request)
            self._line.add(request, now)
        return verdict

    def offer_kept(self, request: Request, knobs: Knobs, now: float) -> Accepted | Rejected:
        """A request whose reply is here already: it will not wait, but counts as one."""
        return admit_kept(request, self.load(request, knobs, now), knobs, now)

    def next(self, knobs: Knobs, now: float) -> Request | None:
        """The request to hand to the engine now, moved to active; None when none may go."""
        self._turn(knobs, now)
        if len(self._active) >= knobs.active_cap:
            self._explain_waiting("cap")
            return None
        while (chosen := self._first(now)) is not None:
            if self._tenant_is_full(chosen, knobs):
                self._line.park(chosen.tenant)
                self._holds.tell(chosen.id, "tenant_limit")
                continue
            if not self._fits(chosen, knobs):
                self._explain_waiting("token_budget")
                return None
            self._leave_queue(chosen.id)
            self._active[chosen.id] = chosen
            self._emitted[chosen.id] = 0
            self._ledger.dispatched(chosen, self.weight(chosen.tenant))
            self._pace.dispatched(chosen.id, now)
            self._explain_overtaken(chosen)
            return chosen
        return None

    def started(self, request_id: str, now: float) -> None:
        """An active request was given its first token."""
        self._pace.first_token(request_id, now)

    def emitted(self, request_id: str, tokens: int) -> None:
        """An active request was given so many tokens: its tenant's service."""
        tenant = self._active[request_id].tenant
        self._emitted[request_id] += tokens
        self._ledger.emitted(tenant, tokens, self.weight(tenant))

    def finish(self, request_id: str, now: float, complete: bool = False) -> None:
        """An active request left the engine; its place is free. `complete`: by its own end."""
        request, tokens = self._active.pop(request_id), self._emitted.pop(request_id)
        del self._offered[request_id]
        self._ledger.finished(request)
        self._line.unpark(request.tenant)
        self._pace.finished(request_id, now)
        self._refund(request, request.sampling.max_tokens - tokens)
        if complete:
            self._lengths.learn(request, tokens)

    def drop(self, request_id: str) -> bool:
        """Forget a waiting request; False where it does not wait."""
        if request_id not in self._waiting:
            return False
        request = self._waiting[request_id]
        self._leave_queue(request_id)
        self._pace.dropped(request_id)
        del self._offered[request_id]
        self._refund(request, footprint(request))
        return True

    def expire(self, knobs: Knobs, now: float) -> Expired:
        """Waiting requests past `queue_timeout_s` (dropped here), and any past
        `request_timeout_s` (waiting ones dropped here, active ones left to be finished)."""
        lived: list[Request] = []
        for request_id, since in self._offered.items():
            if now < since + knobs.request_timeout_s:
                break
            lived.append(self._waiting.get(request_id) or self._active[request_id])
        for request in lived:
            self.drop(request.id)
        queued: list[Request] = []
        for request_id, since in self._queue_since.items():
            if now < since + knobs.queue_timeout_s:
                break
            queued.append(self._waiting[request_id])
        for request in queued:
            self.drop(request.id)
        return Expired(queued, lived)

    def deadline(self, knobs: Knobs) -> float | None:
        """When `expire` will next have something to do; None while nothing is here."""
        oldest = next(iter(self._offered.values()), None)
        if oldest is None:
            return None
        queued = next(iter(self._queue_since.values()), None)
        ends = oldest + knobs.request_timeout_s
        return ends if queued is None else min(ends, queued + knobs.queue_timeout_s)

    def holds(self) -> list[tuple[str, WaitReason]]:
        """Waiting requests whose reason for waiting changed since the last call."""
        return self._holds.take()

    def check(self) -> None:
        """Assert the invariants above; AssertionError says which is broken."""
        assert not self._waiting.keys() & self._active.keys(), "waiting and active overlap"
        here = self._waiting.keys() | self._active.keys()
        assert self._offered.keys() == here, "a request has no birth time, or a ghost has one"
        assert self._queue_since.keys() == self._waiting.keys(), "queue times and waiting differ"
        assert self._holds.ids <= self._waiting.keys(), "a hold reason outlived its request"
        counts = Counter(r.tenant for r in self._waiting.values())
        told = {tenant: account.waiting for tenant, account in self._ledger.waiting.items()}
        assert counts == told, "the ledger miscounts who waits"
        assert self._emitted.keys() == self._active.keys(), "emitted tokens of who is not active"
        assert self._charged <= here, "a charge outlived its request"
        active = self._active.values()
        held = Counter(r.tenant for r in active)
        for tenant in held:
            assert self._ledger.account(tenant).active == held[tenant], "active miscounted"
        assert self._ledger.tokens_in_flight == sum(footprint(r) for r in active)

    def _leave_queue(self, request_id: str) -> None:
        request = self._waiting.pop(request_id)
        self._line.remove(request)
        self._ledger.left_queue(request)
        self._holds.forget(request_id)
        del self._queue_since[request_id]

    def _fits(self, request: Request, knobs: Knobs) -> bool:
        """The token budget has room; a request larger than all of it may run alone."""
        budget = knobs.max_tokens_in_flight
        taken = self._ledger.tokens_in_flight
        return budget is None or taken == 0 or taken + footprint(request) <= budget

    def _tenant_is_full(self, request: Request, knobs: Knobs) -> bool:
        """Its tenant holds all it may; one request may always run, however large."""
        account = self._ledger.account(request.tenant)
        own = self._terms.get(request.tenant, NONE).max_active
        limit = knobs.max_active_per_tenant if own is None else own
        if limit is not None and account.active >= limit:
            return True
        share = knobs.kv_share_per_tenant
        if share is None or not self.kv_capacity_tokens or account.active == 0:
            return False
        held = account.tokens_in_flight + footprint(request)
        return held > share * self.kv_capacity_tokens

    def _refund(self, request: Request, tokens: int) -> None:
        """Give back what a request asked for and did not use."""
        if request.id in self._charged:
            self._charged.discard(request.id)
            bucket = self._ledger.account(request.tenant).token_bucket
            bucket.take(-tokens)  # above the burst it is cut at the next refill

    def _first(self, now: float) -> Request | None:
        try:
            return self._line.first(now)
        except PolicyError as error:
            self._broken = error
            self.use(None, now)
            return self._line.first(now)

    def _turn(self, knobs: Knobs, now: float) -> None:
        """Order anew when a knob of the order has changed: O(n log n), loses nobody."""
        before = self._knobs
        if knobs is before:
            return
        self._knobs = knobs
        if order_of(knobs) == order_of(before):
            self._line.turn(knobs)
            return
        if knobs.tenant_weights != before.tenant_weights:
            self._weights = weights_of(knobs.tenant_weights)
        turned = (knobs.policy, knobs.tenant_weights) != (before.policy, before.tenant_weights)
        if turned and knobs.policy == "fair_share":
            self._ledger.level()
        self._order(now)

    def _order(self, now: float) -> None:
        if self._knobs.policy == "custom" and self.user_policy is not None:
            self._line = UserPolicyQueue(self._knobs, self._ledger, self.user_policy)
        else:
            self._line = RequestQueue(self._knobs, self._ledger, self._lengths, self.weight)
        for request in self._waiting.values():
            self._line.add(request, now)

    def _explain_waiting(self, reason: WaitReason) -> None:
        """Those who came last wait for this; walked from the newest, so O(new ones)."""
        for request_id in reversed(self._waiting):
            if request_id in self._holds:
                break
            self._holds.tell(request_id, reason)

    def _explain_overtaken(self, chosen: Request) -> None:
        oldest = next(iter(self._waiting.values()), None)
        if oldest is None or self._line.is_parked(oldest.tenant):
            return
        if self._offered[oldest.id] < self._offered[chosen.id]:
            self._holds.tell(oldest.id, "policy")
