"""The front scheduler, as lists of what happened and what must follow."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmserve.core.knobs import Knobs
from llmserve.core.types import Request
from llmserve.scheduling.admission import Accepted, Rejected
from llmserve.scheduling.ledger import footprint
from llmserve.scheduling.policies import POLICIES
from llmserve.scheduling.scheduler import Scheduler
from support.examples import examples
from support.requests import request

ONE = Knobs(max_active=1)
LEN = 100


def offered(knobs: Knobs, *requests: tuple[str, float, int]) -> Scheduler:
    scheduler = Scheduler(LEN)
    for id, arrival, priority in requests:
        verdict = scheduler.offer(request(id, arrival, priority=priority), knobs, arrival)
        assert verdict == Accepted()
    return scheduler


def order(scheduler: Scheduler, knobs: Knobs) -> list[str]:
    picked = []
    while (chosen := scheduler.next(knobs, 0.0)) is not None:
        picked.append(chosen.id)
        scheduler.finish(chosen.id, 100.0)
        scheduler.check()
    return picked


def test_fifo_goes_by_arrival() -> None:
    scheduler = offered(ONE, ("a", 0, 5), ("b", 1, 0), ("c", 2, 0))
    assert order(scheduler, ONE) == ["a", "b", "c"]


def test_strict_priority_lets_the_lower_class_number_first() -> None:
    knobs = Knobs(max_active=1, policy="priority", priority_aging_s=None)
    scheduler = offered(knobs, ("low", 0, 5), ("high", 1, 0), ("mid", 2, 2))
    assert order(scheduler, knobs) == ["high", "mid", "low"]


def test_aging_bounds_how_long_a_low_class_is_overtaken() -> None:
    knobs = Knobs(max_active=1, policy="priority", priority_aging_s=10)
    scheduler = offered(knobs, ("low", 0, 1), ("soon", 9.9, 0), ("late", 10.1, 0))
    assert order(scheduler, knobs) == ["soon", "low", "late"]


def test_switching_the_policy_mid_run_reorders_and_loses_nobody() -> None:
    strict = Knobs(max_active=1, policy="priority", priority_aging_s=None)
    scheduler = offered(ONE, ("a", 0, 3), ("b", 1, 2), ("c", 2, 1))
    chosen = scheduler.next(ONE, 0.0)
    assert chosen is not None
    assert chosen.request == request("a", 0, priority=3)
    scheduler.finish("a", 3)
    assert order(scheduler, strict) == ["c", "b"]


def test_no_more_than_max_active_are_dispatched() -> None:
    scheduler = offered(Knobs(), *((str(n), n, 0) for n in range(5)))
    two = Knobs(max_active=2)
    assert [scheduler.next(two, 0.0) is None for _ in range(3)] == [False, False, True]
    assert (scheduler.active, scheduler.waiting) == (2, 3)


def test_max_active_follows_max_num_seqs_when_unset() -> None:
    knobs = Knobs(max_num_seqs=3)
    scheduler = offered(knobs, *((str(n), n, 0) for n in range(9)))
    while scheduler.next(knobs, 0.0):
        pass
    assert scheduler.active == 5


def test_a_full_queue_refuses_and_tells_when_to_return_by_the_measured_rate() -> None:
    knobs = Knobs(max_active=1, queue_max=1)
    scheduler = Scheduler(LEN)
    for id, end in (("a", 10.0), ("b", 99.0)):  # a slot is taken for 2 s, idle time aside
        assert scheduler.offer(request(id, end), knobs, end) == Accepted()
        scheduler.next(knobs, end - 2)
        scheduler.finish(id, end)
    for id in ("c", "d"):
        assert scheduler.offer(request(id, 99), knobs, 99) == Accepted()
        scheduler.next(knobs, 99)
    verdict = scheduler.offer(request("e", 99), knobs, 99)
    assert isinstance(verdict, Rejected)
    assert (verdict.reason, verdict.retry_after_s) == ("queue_full", 2.0)


def test_reject_mode_refuses_at_once_when_no_slot_is_free() -> None:
    knobs = Knobs(max_active=1, queue_mode="reject")
    scheduler = offered(knobs, ("a", 0, 0))
    scheduler.next(knobs, 0.0)
    verdict = scheduler.offer(request("b", 1), knobs, 1)
    assert isinstance(verdict, Rejected)
    assert verdict.reason == "no_place"


def test_a_prompt_that_leaves_no_room_to_answer_is_refused() -> None:
    verdict = Scheduler(LEN).offer(request("a", prompt_tokens=LEN), Knobs(), 0)
    assert isinstance(verdict, Rejected)
    assert verdict.reason == "too_long"


def test_waiting_too_long_expires_only_those_who_wait() -> None:
    knobs = Knobs(max_active=1, queue_timeout_s=5, request_timeout_s=50)
    scheduler = offered(knobs, ("a", 0, 0), ("b", 1, 0), ("c", 2, 0))
    scheduler.next(knobs, 0.0)
    assert scheduler.deadline(knobs) == 6
    expired = scheduler.expire(knobs, 6.5)
    assert [r.id for r in expired.queued_too_long] == ["b"]
    assert expired.lived_too_long == []
    scheduler.check()


def test_living_too_long_expires_the_active_too_but_keeps_its_slot_until_finished() -> None:
    knobs = Knobs(max_active=1, queue_timeout_s=500, request_timeout_s=50)
    scheduler = offered(knobs, ("a", 0, 0), ("b", 1, 0))
    scheduler.next(knobs, 0.0)
    expired = scheduler.expire(knobs, 51)
    assert [r.id for r in expired.lived_too_long] == ["a", "b"]
    assert (scheduler.active, scheduler.waiting) == (1, 0)
    scheduler.finish("a", 51)
    scheduler.check()


def test_a_live_id_cannot_be_offered_twice() -> None:
    scheduler = offered(ONE, ("a", 0, 0))
    with pytest.raises(ValueError, match="already here"):
        scheduler.offer(request("a"), ONE, 1)


def test_each_change_of_a_wait_reason_is_taken_once() -> None:
    knobs = Knobs(max_active=1, policy="priority", priority_aging_s=None)
    scheduler = offered(knobs, ("a", 0, 0), ("b", 1, 1), ("c", 2, 0))
    scheduler.next(knobs, 0.0)
    assert scheduler.next(knobs, 0.0) is None
    assert sorted(scheduler.take_wait_reasons()) == [("b", "cap"), ("c", "cap")]
    scheduler.finish("a", 3)
    scheduler.next(knobs, 0.0)
    assert scheduler.take_wait_reasons() == [("b", "policy")]
    assert scheduler.take_wait_reasons() == []


class Traffic(RuleBasedStateMachine):
    """Any interleaving of arrivals, ends, leaves, timeouts and knob changes."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(LEN)
        self.knobs = Knobs(max_active=2)
        self.now = 0.0
        self.n = 0
        self.accepted: set[str] = set()
        self.ended: list[str] = []
        self.active: list[str] = []
        self.requests: dict[str, Request] = {}

    @rule(
        priority=st.integers(-3, 3),
        gap=st.floats(0, 5),
        tenant=st.sampled_from("abc"),
        tokens=st.integers(1, 60),
        slo=st.sampled_from([None, 1.0, 3000.0]),
    )
    def arrive(
        self, priority: int, gap: float, tenant: str, tokens: int, slo: float | None
    ) -> None:
        self.now += gap
        self.n += 1
        arriving = request(
            str(self.n), self.now, priority=priority, tenant=tenant, max_tokens=tokens,
            ttft_slo_ms=slo,
        )  # fmt: skip
        verdict = self.scheduler.offer(arriving, self.knobs, self.now)
        if isinstance(verdict, Accepted):
            self.accepted.add(str(self.n))

    @rule()
    def dispatch(self) -> None:
        room = self.scheduler.active < self.knobs.active_cap
        chosen = self.scheduler.next(self.knobs, self.now)
        if chosen is not None:
            assert room
            self.take(chosen.request)
        elif room and self.scheduler.waiting:
            assert self.knobs.max_active_per_tenant or self.knobs.max_tokens_in_flight
            assert self.active, "slots are free, nothing runs, and nobody goes"
        self.scheduler.take_wait_reasons()

    def take(self, chosen: Request) -> None:
        self.active.append(chosen.id)
        self.requests[chosen.id] = chosen
        mine = [id for id in self.active if self.requests[id].tenant == chosen.tenant]
        assert len(mine) <= (self.knobs.max_active_per_tenant or 99)
        held = sum(footprint(self.requests[id]) for id in self.active)
        budget = self.knobs.max_tokens_in_flight
        assert budget is None or held <= budget or len(self.active) == 1

    @rule(data=st.data(), n=st.integers(1, 20))
    def emit(self, data: st.DataObject, n: int) -> None:
        if self.active:
            self.scheduler.emitted(data.draw(st.sampled_from(self.active)), n)

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if self.active:
            id = data.draw(st.sampled_from(self.active))
            self.active.remove(id)
            self.scheduler.finish(id, self.now)
            self.ended.append(id)

    @rule(n=st.integers(1, 40))
    def leave(self, n: int) -> None:
        if self.scheduler.drop(str(n)):
            self.ended.append(str(n))

    @rule()
    def expire(self) -> None:
        expired = self.scheduler.expire(self.knobs, self.now)
        gone = [*expired.queued_too_long, *expired.lived_too_long]
        self.ended += [r.id for r in gone if r.id not in self.active]

    @rule(
        policy=st.sampled_from(sorted(POLICIES)),
        per_tenant=st.sampled_from([None, 1, 2]),
        in_flight=st.sampled_from([None, 10, 100]),
        rate=st.sampled_from([None, 0.5]),
        cap=st.integers(1, 4),
        aging=st.sampled_from([None, 1.0, 30.0]),
        queue=st.integers(0, 5),
        timeout=st.floats(0.5, 20),
    )
    def turn(
        self,
        policy: str,
        cap: int,
        aging: float | None,
        queue: int,
        timeout: float,
        per_tenant: int | None,
        in_flight: int | None,
        rate: float | None,
    ) -> None:
        self.knobs = self.knobs.changed(
            {
                "policy": policy,
                "max_active": cap,
                "priority_aging_s": aging,
                "queue_max": queue,
                "queue_timeout_s": timeout,
                "max_active_per_tenant": per_tenant,
                "max_tokens_in_flight": in_flight,
                "rate_limit_rps": rate,
            }
        )

    @invariant()
    def all_is_accounted_for(self) -> None:
        self.scheduler.check()
        assert len(self.ended) == len(set(self.ended)), "a request ended twice"
        assert len(self.accepted) == (
            len(self.ended) + self.scheduler.waiting + self.scheduler.active
        )

    def teardown(self) -> None:
        """Work conservation: whatever waits is served once slots come free."""
        while self.active or self.scheduler.waiting:
            while (chosen := self.scheduler.next(self.knobs, self.now)) is not None:
                self.take(chosen.request)
            assert self.active, "requests wait, slots are free, and nobody goes"
            self.scheduler.finish(self.active.pop(), self.now)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=examples(300), stateful_step_count=40, deadline=None)
