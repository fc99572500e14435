"""The front scheduler: which request is dispatched to the engine next. No asyncio, no clock.

Invariants (`check`): every request admitted has one `Entry`, waiting or active, until it is
finished, dropped or expired; the indexes name just those that wait; no cap is exceeded but by
lowering it; the ledger counts exactly what waits and runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import takewhile
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
from llmserve.scheduling.entry import Entry
from llmserve.scheduling.ledger import Ledger, footprint
from llmserve.scheduling.output_length import OutputLengths
from llmserve.scheduling.queue import RequestQueue, TenantQueue, UserPolicyQueue, order_of
from llmserve.scheduling.user_policy import PolicyError, UserPolicy
from llmserve.scheduling.wait_estimate import WaitEstimate


class Expired(NamedTuple):
    queued_too_long: list[Entry]
    lived_too_long: list[Entry]


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
        self._entries: dict[str, Entry] = {}  # in order of admission
        self._waiting: dict[str, None] = {}  # index: those that wait, in that order
        self._changed: dict[str, None] = {}  # index: those whose wait reason is not yet published
        self._ledger = Ledger()
        self._knobs = Knobs()
        self._lengths = OutputLengths()
        self._pace = WaitEstimate()
        self._weights: dict[str, float] = {}
        self._broken: PolicyError | None = None
        self._queue = self._new_queue()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def active(self) -> int:
        return len(self._entries) - len(self._waiting)

    @property
    def entries(self) -> Iterable[Entry]:
        """The entries of all that wait or are active, in order of admission."""
        return self._entries.values()

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    def find(self, request_id: str) -> Entry | None:
        """The entry of a request that waits or is active."""
        return self._entries.get(request_id)

    def load(self, request: Request, knobs: Knobs, now: float) -> AdmissionState:
        terms = self._terms.get(request.tenant, NONE)
        return AdmissionState(
            self.waiting,
            self.active,
            self.max_model_len,
            self._ledger.usage(request.tenant),
            self._queue.ahead(request, now),
            self._pace.per_s(now),
            self._pace.first_token_s,
            self._pace.margin_s,
            terms.rate_limit_rps or knobs.rate_limit_rps,
            terms.rate_limit_tps or knobs.rate_limit_tps,
        )

    def free_per_s(self, now: float) -> float | None:
        """Slots that come free each second, as lately measured."""
        return self._pace.per_s(now)

    def weight(self, tenant: str) -> float:
        """The tenant's weight: by the knob, else by the tenant's terms, else 1."""
        weight = self._weights.get(tenant)
        return weight or self._terms.get(tenant, NONE).weight or 1.0

    def fairness(self) -> Fairness | None:
        """The fairness sample; None unless the policy is fair_share and two tenants or more
        wait."""
        waiting = self._ledger.waiting
        if self._knobs.policy != "fair_share" or len(waiting) < 2:
            return None
        lightest = min(self.weight(tenant) for tenant in waiting)
        return Fairness(self._ledger.gap(), self._ledger.bound(lightest), len(waiting))

    def set_terms(self, terms: Mapping[str, Terms], now: float) -> None:
        """Replace the tenants' terms, for requests that wait already too."""
        self._terms = terms
        if self._knobs.policy == "fair_share":
            self._ledger.level()
        self._order(now)

    def use(self, policy: UserPolicy | None, now: float) -> None:
        """Set what `policy=custom` means from now on; fifo where it is None."""
        self.user_policy = policy
        self._order(now)

    def take_broken(self) -> PolicyError | None:
        """Return once why the user's policy was removed."""
        broken, self._broken = self._broken, None
        return broken

    def offer(self, request: Request, knobs: Knobs, now: float) -> Accepted | Rejected:
        """Admit the request to the queue, or reject it. ValueError on a live id."""
        if request.id in self._entries:
            raise ValueError(f"request id {request.id} is already here")
        self._turn(knobs, now)
        load = self.load(request, knobs, now)
        verdict = admit(request, load, knobs, now)
        if isinstance(verdict, Accepted):
            entry = Entry(request, load.usage, now, load.rate_limit_tps is not None)
            if knobs.admission_slo != "off" and load.must_wait(knobs):
                seconds = predicted_ttft_s(load, knobs)
                entry.first_token_due_s = None if seconds is None else now + seconds
            self._entries[request.id] = entry
            self._waiting[request.id] = None
            self._ledger.arrived(request)
            self._queue.add(entry, now)
        return verdict

    def offer_kept(self, request: Request, knobs: Knobs, now: float) -> Accepted | Rejected:
        """Admit a request whose reply is cached: it will not wait, but counts as one."""
        return admit_kept(request, self.load(request, knobs, now), knobs, now)

    def next(self, knobs: Knobs, now: float) -> Entry | None:
        """Return the request to dispatch now, which is active from here on; None when none may
        go."""
        self._turn(knobs, now)
        if not self._waiting:
            return None
        if self.active >= knobs.active_cap:
            self._explain_waiting("cap")
            return None
        while (entry := self._first(now)) is not None:
            if self._tenant_is_full(entry, knobs):
                self._queue.park(entry.tenant)
                self._explain(entry, "tenant_limit")
                continue
            if not self._fits(entry.request, knobs):
                self._explain_waiting("token_budget")
                return None
            entry.status, entry.dispatched_s = "dispatched", now
            self._leave_queue(entry)
            self._ledger.dispatched(entry.request, self.weight(entry.tenant))
            self._pace.dispatched(entry)
            self._explain_overtaken(entry)
            return entry
        return None

    def started(self, request_id: str, now: float) -> None:
        """Note that an active request was given its first token."""
        entry = self._entries[request_id]
        if entry.status == "dispatched":
            entry.status = "running"
            self._pace.first_token(entry, now)

    def emitted(self, request_id: str, tokens: int) -> None:
        """Count tokens given to an active request as its tenant's service."""
        entry = self._entries[request_id]
        entry.emitted_tokens += tokens
        entry.usage.emitted(tokens, self.weight(entry.tenant))

    def served(self, tenant: str, times: int) -> None:
        """Count so many single tokens given to a tenant's active requests, in one go; how many each
        request had, `counted` says before its end."""
        self._ledger.usage(tenant).emitted_singly(times, self.weight(tenant))

    def counted(self, request_id: str, tokens: int) -> None:
        """Note how many tokens an active request was given, all of them `served` already."""
        self._entries[request_id].emitted_tokens = tokens

    def finish(self, request_id: str, now: float, complete: bool = False) -> None:
        """End an active request that left the engine; its slot is free. `complete`: by its own
        end."""
        entry = self._entries[request_id]
        assert not entry.waits, f"{request_id} waits: drop it"
        request, tokens = entry.request, entry.emitted_tokens
        self._end(entry, unused=request.sampling.max_tokens - tokens)
        self._ledger.finished(request)
        self._queue.unpark(request.tenant)
        self._pace.finished(entry, now)
        if complete:
            self._lengths.learn(request, tokens)

    def drop(self, request_id: str) -> bool:
        """Forget a waiting request; False where it does not wait."""
        if request_id not in self._waiting:
            return False
        entry = self._entries[request_id]
        self._end(entry, unused=footprint(entry.request))
        self._leave_queue(entry)
        return True

    def expire(self, knobs: Knobs, now: float) -> Expired:
        """Return waiting requests past `queue_timeout_s` (dropped here), and any past
        `request_timeout_s` (waiting ones dropped here, active ones left to be finished)."""
        due = self.deadline(knobs)
        if due is None or now < due:  # as nearly always
            return Expired([], [])
        lived = self._older(self._entries, now, knobs.request_timeout_s)
        for entry in lived:
            self.drop(entry.id)
        queued = self._older(self._waiting, now, knobs.queue_timeout_s)
        for entry in queued:
            self.drop(entry.id)
        return Expired(queued, lived)

    def deadline(self, knobs: Knobs) -> float | None:
        """When `expire` will next have something to do; None while nothing is here."""
        oldest = next(iter(self._entries.values()), None)
        if oldest is None:
            return None
        ends = oldest.admitted_s + knobs.request_timeout_s
        first = self._oldest_waiting()
        return ends if first is None else min(ends, first.admitted_s + knobs.queue_timeout_s)

    def take_wait_reasons(self) -> list[tuple[str, WaitReason]]:
        """Waiting requests whose reason changed since the last call, each with the new one."""
        if not self._changed:
            return []
        changed, self._changed = self._changed, {}
        entries = (self._entries[request_id] for request_id in changed)
        return [(one.id, one.wait_reason) for one in entries if one.wait_reason is not None]

    def check(self) -> None:
        """Assert the invariants above; AssertionError says which is broken."""
        waiting = [entry for entry in self.entries if entry.waits]
        active = [entry for entry in self.entries if entry.status in ("dispatched", "running")]
        assert len(waiting) + len(active) == len(self._entries), "one that has ended is still here"
        assert [entry.id for entry in waiting] == [*self._waiting], "the waiting index is off"
        assert self._changed.keys() <= self._waiting.keys(), "a wait reason outlived its wait"
        for entry in self.entries:
            assert entry.usage is self._ledger.usage(entry.tenant), "another's usage"
            assert entry.waits or entry.wait_reason is None, "a wait reason outlived its wait"
            assert entry.emitted_tokens == 0 or not entry.waits, "a waiting request has tokens"
        self._ledger.check(
            Counter(entry.tenant for entry in waiting), [one.request for one in active]
        )

    def _older(self, ids: Iterable[str], now: float, limit_s: float) -> list[Entry]:
        """Of requests in order of admission, those that were admitted so long ago."""
        entries = (self._entries[request_id] for request_id in ids)
        return list(takewhile(lambda one: now >= one.admitted_s + limit_s, entries))

    def _oldest_waiting(self) -> Entry | None:
        oldest = next(iter(self._waiting), None)
        return None if oldest is None else self._entries[oldest]

    def _leave_queue(self, entry: Entry) -> None:
        """Of one whose status says already that it waits no more."""
        request = entry.request
        del self._waiting[request.id]
        self._changed.pop(request.id, None)
        entry.wait_reason = None
        self._queue.remove(entry)
        self._ledger.left_queue(request)

    def _end(self, entry: Entry, unused: int) -> None:
        """`unused` tokens of those that it asked for go back to its tenant's bucket."""
        entry.status = "ended"
        del self._entries[entry.id]
        if entry.charged:
            entry.usage.token_bucket.take(-unused)  # cut to the burst at the next refill

    def _fits(self, request: Request, knobs: Knobs) -> bool:
        """The token budget has room; a request larger than all of it may run alone."""
        budget = knobs.max_tokens_in_flight
        taken = self._ledger.tokens_in_flight
        return budget is None or taken == 0 or taken + footprint(request) <= budget

    def _tenant_is_full(self, entry: Entry, knobs: Knobs) -> bool:
        """Its tenant has all it may; one request may always run, however large."""
        usage = entry.usage
        own = self._terms.get(entry.tenant, NONE).max_active
        limit = knobs.max_active_per_tenant if own is None else own
        if limit is not None and usage.active >= limit:
            return True
        share = knobs.kv_share_per_tenant
        if share is None or not self.kv_capacity_tokens or usage.active == 0:
            return False
        tokens = usage.tokens_in_flight + footprint(entry.request)
        return tokens > share * self.kv_capacity_tokens

    def _first(self, now: float) -> Entry | None:
        try:
            return self._queue.first(now)
        except PolicyError as error:
            self._broken = error
            self.use(None, now)
            return self._queue.first(now)

    def _turn(self, knobs: Knobs, now: float) -> None:
        """Order anew when a knob of the order has changed: O(n log n), loses nobody."""
        before = self._knobs
        if knobs is before:
            return
        self._knobs = knobs
        if order_of(knobs) == order_of(before):
            self._queue.turn(knobs)
            return
        if knobs.tenant_weights != before.tenant_weights:
            self._weights = weights_of(knobs.tenant_weights)
        turned = (knobs.policy, knobs.tenant_weights) != (before.policy, before.tenant_weights)
        if turned and knobs.policy == "fair_share":
            self._ledger.level()
        self._order(now)

    def _order(self, now: float) -> None:
        self._queue = self._new_queue()
        for request_id in self._waiting:
            self._queue.add(self._entries[request_id], now)

    def _new_queue(self) -> TenantQueue:
        knobs, ledger, entries, waiting = self._knobs, self._ledger, self._entries, self._waiting
        if knobs.policy == "custom" and self.user_policy is not None:
            return UserPolicyQueue(knobs, ledger, self.user_policy, entries, waiting)
        return RequestQueue(knobs, ledger, self._lengths, self.weight, entries, waiting)

    def _explain(self, entry: Entry, reason: WaitReason) -> None:
        if entry.wait_reason != reason:
            entry.wait_reason = reason
            self._changed[entry.id] = None

    def _explain_waiting(self, reason: WaitReason) -> None:
        """Give the newest requests their wait reason; walked from the newest, so O(new ones)."""
        for request_id in reversed(self._waiting):
            entry = self._entries[request_id]
            if entry.wait_reason is not None:
                break
            self._explain(entry, reason)

    def _explain_overtaken(self, chosen: Entry) -> None:
        oldest = self._oldest_waiting()
        if oldest is None or self._queue.is_parked(oldest.tenant):
            return
        if oldest.admitted_s < chosen.admitted_s:
            self._explain(oldest, "policy")
