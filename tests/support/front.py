"""Scheduler and StepPlanner together, as service and engine drive them, without a loop or a clock.

Keeps its own account of everything and asserts the promises at every turn; `now` is virtual.
"""

from __future__ import annotations

from itertools import combinations

from llmserve.core.knobs import Knobs
from llmserve.core.tenants import NONE, Terms
from llmserve.core.types import Request
from llmserve.engines.batching.step_planner import StepPlanner
from llmserve.scheduling.admission import Accepted
from llmserve.scheduling.ledger import OUTPUT_WEIGHT, PROMPT_WEIGHT, footprint
from llmserve.scheduling.scheduler import Scheduler
from llmserve.scheduling.user_policy import UserPolicy

BLOCKS, BLOCK_SIZE, MODEL_LEN = 12, 4, 40
MOST_STEPS = 3_000


class Front:
    def __init__(self, policy: UserPolicy) -> None:
        self.scheduler = Scheduler(MODEL_LEN, kv_capacity_tokens=BLOCKS * BLOCK_SIZE)
        self.policy = policy
        self.terms: dict[str, Terms] = {}
        self.knobs = Knobs(max_num_seqs=3, max_num_batched_tokens=16)
        self.now = 0.0
        self.waiting: dict[str, Request] = {}
        self.active: dict[str, Request] = {}
        self.tokens: dict[str, int] = {}
        self.ended: dict[str, str] = {}
        self.arrived = 0
        self.given: dict[str, float] = {}
        """Service per tenant, over its weight, reckoned here and not by the ledger."""
        self.pairs: dict[tuple[str, str], tuple[float, float]] = {}
        """Two tenants who both wait all along, and what each had been given when that began."""
        self.start_engine()
        self.scheduler.use(policy, 0.0)

    def start_engine(self) -> None:
        self.planner = StepPlanner(
            kv_blocks=BLOCKS, block_size=BLOCK_SIZE, max_model_len=MODEL_LEN
        )

    def arrive(self, request: Request) -> None:
        self.arrived += 1
        if self.scheduler.offer(request, self.knobs, self.now) == Accepted():
            self.waiting[request.id] = request
        else:
            self.end(request.id, "refused")
        self.pump()

    def leave(self, request_id: str) -> None:
        if request_id in self.active:
            self.planner.remove(request_id)
            self.free(request_id, "left")
        else:
            assert self.scheduler.drop(request_id)
            del self.waiting[request_id]
            self.end(request_id, "left")
        self.pump()

    def turn(self, **changes: object) -> None:
        self.knobs = self.knobs.changed(changes)
        self.pairs.clear()
        self.pump()

    def set_terms(self, terms: dict[str, Terms]) -> None:
        self.terms = terms
        self.scheduler.set_terms(terms, self.now)
        self.pairs.clear()
        self.pump()

    def ask_for_kept(self, request: Request) -> None:
        """A reply that is here already: whatever admission control says, nobody waits for it."""
        self.scheduler.offer_kept(request, self.knobs, self.now)
        self.pump()

    def fail(self) -> None:
        """The engine dies: what ran ends, what waits goes on waiting."""
        self.start_engine()
        for request_id in list(self.active):
            self.free(request_id, "error")
        self.pump()

    def pump(self) -> None:
        expired = self.scheduler.expire(self.knobs, self.now)
        for late in expired.queued_too_long:
            del self.waiting[late.id]
            self.end(late.id, "queue_timeout")
        for late in expired.lived_too_long:
            if late.id in self.active:
                self.planner.remove(late.id)
                self.free(late.id, "timeout")
            else:
                del self.waiting[late.id]
                self.end(late.id, "timeout")
        while (entry := self.scheduler.next(self.knobs, self.now)) is not None:
            chosen = entry.request
            self.check_bound_on_waits(chosen)
            self.active[chosen.id] = self.waiting.pop(chosen.id)
            self.tokens[chosen.id] = 0
            self.serve(chosen, PROMPT_WEIGHT * len(chosen.prompt_ids))
            self.check_caps(chosen)
            self.planner.add(chosen, self.now)
        assert self.scheduler.take_broken() is None
        self.scheduler.take_wait_reasons()
        self.check_nobody_waits_for_nothing()
        self.check()

    def step(self, took: float) -> bool:
        """One engine step; False when there was nothing to do."""
        plan = self.planner.plan(self.knobs, self.now)
        if plan is None:
            return False
        seqs = self.knobs.max_num_seqs
        prefills = sum(row.kind == "prefill" for row in plan.rows)
        assert sum(row.tokens for row in plan.rows) <= self.knobs.max_num_batched_tokens
        fresh = [row for row in plan.rows if row.start == 0]
        assert not fresh or len(list(self.planner.running)) <= seqs, "joined above the cap"
        slots = self.knobs.min_decode_slots
        assert not (fresh and slots) or prefills <= max(1, seqs - slots) or len(fresh) < prefills
        self.now += took
        self.planner.commit(plan, {row.seq.id: 7 for row in plan.rows if row.samples})
        for row in plan.rows:
            if row.samples:
                request = self.active[row.seq.id]
                self.tokens[request.id] += 1
                self.scheduler.started(request.id, self.now)
                self.scheduler.emitted(request.id, 1)
                self.serve(request, OUTPUT_WEIGHT)
                assert row.seq.generated == self.tokens[request.id]
            if row.seq.full:
                self.planner.remove(row.seq.id)
                self.free(row.seq.id, "length")
        self.pump()
        return True

    def drain(self) -> None:
        """Whatever was done before, all that is here ends, in a bounded number of steps."""
        self.knobs = self.knobs.changed({"queue_timeout_s": 86_400, "request_timeout_s": 86_400})
        self.pump()
        for _ in range(MOST_STEPS):
            if not self.active and not self.waiting:
                break
            if not self.step(0.01):
                wake = self.planner.wake_at(self.knobs, self.now)
                assert wake is not None, "work waits and nothing will ever happen"
                self.now = wake
        assert not self.active, "a running request never ends"
        assert not self.waiting, "a waiting request is never served"
        assert len(self.ended) == self.arrived
        assert self.planner.kv_used_blocks == 0
        assert self.scheduler.ledger.tokens_in_flight == 0

    def free(self, request_id: str, how: str) -> None:
        request = self.active.pop(request_id)
        self.scheduler.finish(request_id, self.now, complete=how == "length")
        self.end(request_id, how)
        if how == "length":
            asked = min(request.sampling.max_tokens, MODEL_LEN - len(request.prompt_ids))
            assert self.tokens[request_id] == asked, "tokens were lost or made up"

    def end(self, request_id: str, how: str) -> None:
        assert request_id not in self.ended, f"{request_id} ended twice"
        self.ended[request_id] = how

    def serve(self, request: Request, amount: float) -> None:
        tenant = request.tenant
        weight = self.scheduler.weight(tenant)
        self.given[tenant] = self.given.get(tenant, 0.0) + amount / weight

    def check(self) -> None:
        self.scheduler.check()
        self.planner.check()
        here = {seq.id for seq in (*self.planner.waiting, *self.planner.running)}
        assert here == self.active.keys()
        assert self.scheduler.waiting == len(self.waiting)
        assert len(self.ended) + len(self.waiting) + len(self.active) == self.arrived
        self.check_fairness()

    def check_caps(self, chosen: Request) -> None:
        knobs, held = self.knobs, list(self.active.values())
        own = [request for request in held if request.tenant == chosen.tenant]
        assert len(held) <= knobs.active_cap
        agreed = self.terms.get(chosen.tenant, NONE).max_active
        limit = knobs.max_active_per_tenant if agreed is None else agreed
        assert limit is None or len(own) <= limit
        budget = knobs.max_tokens_in_flight
        assert budget is None or len(held) == 1 or sum(map(footprint, held)) <= budget
        share = knobs.kv_share_per_tenant
        room = (share or 0) * BLOCKS * BLOCK_SIZE
        assert share is None or len(own) == 1 or sum(map(footprint, own)) <= room

    def check_bound_on_waits(self, chosen: Request) -> None:
        """Who waits is overtaken only by a better class, and only for so long (aging)."""
        aging = self.knobs.priority_aging_s
        if self.knobs.policy != "priority" or aging is None or self.tenants_are_limited:
            return
        for other in self.waiting.values():
            if other.arrival < chosen.arrival:
                classes = other.priority - chosen.priority
                assert chosen.arrival - other.arrival <= classes * aging + 1e-9

    def check_nobody_waits_for_nothing(self) -> None:
        if not self.waiting or len(self.active) >= self.knobs.active_cap:
            return
        assert self.active, "slots are free, nothing runs, and nobody goes"
        assert self.tenants_are_limited or self.knobs.max_tokens_in_flight is not None

    def check_fairness(self) -> None:
        """Two tenants who both wait are served alike, within the paper's bound."""
        if self.knobs.policy != "fair_share" or self.tenants_are_limited:
            self.pairs.clear()
            return
        fairness = self.scheduler.fairness()
        assert fairness is None or fairness.gap <= fairness.bound + 1e-9
        backlogged = sorted({request.tenant for request in self.waiting.values()})
        pairs = set(combinations(backlogged, 2))
        self.pairs = {pair: since for pair, since in self.pairs.items() if pair in pairs}
        for a, b in pairs:
            now = self.given.get(a, 0.0), self.given.get(b, 0.0)
            since = self.pairs.setdefault((a, b), now)
            assert fairness is not None
            difference = abs((now[0] - since[0]) - (now[1] - since[1]))
            assert difference <= fairness.bound + 1e-9, (a, b, difference, fairness.bound)

    @property
    def tenants_are_limited(self) -> bool:
        knobs = self.knobs
        agreed = any(terms.max_active is not None for terms in self.terms.values())
        limits = (knobs.max_active_per_tenant, knobs.kv_share_per_tenant)
        return agreed or any(limit is not None for limit in limits)
