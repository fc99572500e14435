"""Each policy by its promise, through the scheduler that indexes it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.core.knobs import Knobs, PolicyName
from llmserve.core.tenants import Terms
from llmserve.core.types import Request
from llmserve.scheduling.admission import Accepted, Rejected
from llmserve.scheduling.lazy_heap import Key, LazyHeap, RekeyedHeap
from llmserve.scheduling.ledger import OUTPUT_WEIGHT, PROMPT_WEIGHT
from llmserve.scheduling.output_length import OutputLengths
from llmserve.scheduling.policies import POLICIES
from llmserve.scheduling.scheduler import Scheduler
from support.requests import request


def one(policy: str, **knobs: object) -> Knobs:
    return Knobs().changed({"policy": policy, "max_active": 1, **knobs})


def served(scheduler: Scheduler, knobs: Knobs, now: float = 100.0, tokens: int = 0) -> list[str]:
    """Serve one at a time until nobody waits; the order."""
    order = []
    while (chosen := scheduler.next(knobs, now)) is not None:
        order.append(chosen.id)
        scheduler.emitted(chosen.id, tokens)
        scheduler.finish(chosen.id, now)
        scheduler.check()
    return order


def filled(knobs: Knobs, *requests: Request) -> Scheduler:
    scheduler = Scheduler(1000)
    for each in requests:
        assert scheduler.offer(each, knobs, each.arrival) == Accepted()
    return scheduler


def test_fair_share_alternates_between_a_flood_and_a_trickle() -> None:
    knobs = one("fair_share")
    flood = [request(f"f{n}", n * 0.01, tenant="flood") for n in range(6)]
    trickle = [request(f"t{n}", 1 + n, tenant="trickle") for n in range(2)]
    order = served(filled(knobs, *flood, *trickle), knobs, tokens=8)
    assert order.index("t0") <= 1
    assert order.index("t1") <= 3


def test_returning_tenant_gets_no_credit_for_idle_time() -> None:
    knobs = one("fair_share")
    scheduler = filled(knobs, *(request(f"a{n}", n, tenant="a") for n in range(20)))
    for _ in range(10):
        chosen = scheduler.next(knobs, 30)
        assert chosen is not None
        scheduler.emitted(chosen.id, 8)
        scheduler.finish(chosen.id, 30)
    for n in range(10):
        scheduler.offer(request(f"b{n}", 40 + n, tenant="b"), knobs, 40 + n)
    order = served(scheduler, knobs, tokens=8)
    assert abs(order[:10].count("b0") + sum(id[0] == "b" for id in order[:10]) - 5) <= 1


@pytest.mark.parametrize("seed", range(6))
def test_two_backlogged_tenants_never_differ_by_more_than_the_papers_bound(seed: int) -> None:
    """|W_i − W_j| ≤ 2·max(w_p·L_input, w_q·M), M the tokens that may be in flight at once."""
    rng = random.Random(seed)
    batch, longest = 4, 50
    knobs = Knobs().changed({"policy": "fair_share", "max_active": batch})
    scheduler = Scheduler(1000)
    active: list[tuple[Request, int]] = []
    for n in range(150):
        for tenant in "ab":
            size = rng.randint(1, longest)
            each = request(
                f"{tenant}{n}", n, tenant=tenant, prompt_tokens=size,
                max_tokens=rng.randint(1, longest if tenant == "a" else 5),
            )  # fmt: skip
            scheduler.offer(each, knobs.changed({"queue_max": 9999}), n)
    bound = 2 * max(PROMPT_WEIGHT * longest, OUTPUT_WEIGHT * batch * longest)
    while len(scheduler.ledger.waiting) == 2:
        while (chosen := scheduler.next(knobs, 500)) is not None:
            active.append((chosen.request, chosen.request.sampling.max_tokens))
        index = rng.randrange(len(active))
        for i, (each, left) in enumerate(active):
            scheduler.emitted(each.id, 1)
            active[i] = (each, left - 1)
        assert scheduler.ledger.gap() <= bound
        done = [each for each, left in active if left <= 0] or [active[index][0]]
        active = [(each, left) for each, left in active if each not in done]
        for each in done:
            scheduler.finish(each.id, 500)


def test_a_tenants_own_priorities_reorder_only_its_own_requests() -> None:
    knobs = one("fair_share", priority_aging_s=None)
    order = served(
        filled(
            knobs,
            request("a1", 0, tenant="a", priority=5),
            request("a2", 1, tenant="a", priority=-5),
            request("b1", 2, tenant="b", priority=9),
        ),
        knobs,
        tokens=8,
    )
    assert order == ["a2", "b1", "a1"]


def test_shortest_first_counts_prompt_and_reply() -> None:
    knobs = one("shortest_first", shortest_aging_tps=0)
    long_prompt = request("p", 0, prompt_tokens=90, max_tokens=1)
    long_reply = request("r", 1, prompt_tokens=1, max_tokens=60)
    short = request("s", 2, prompt_tokens=5, max_tokens=5)
    assert served(filled(knobs, long_prompt, long_reply, short), knobs) == ["s", "r", "p"]


def test_shortest_first_ages_so_that_the_long_is_not_starved() -> None:
    knobs = one("shortest_first", shortest_aging_tps=10)
    long = request("long", 0, max_tokens=100)
    shorts = [request(f"s{n}", n, max_tokens=5) for n in range(20)]
    order = served(filled(knobs, long, *shorts), knobs)
    # 95 tokens more are worth 9.5 s: those that came later than that stand behind
    assert order.index("long") == 10


def test_deadline_goes_by_the_earliest_and_puts_the_late_behind_the_savable() -> None:
    knobs = one("deadline", ttft_slo_ms=10_000)
    late = request("late", 0, ttft_slo_ms=1000)
    urgent = request("urgent", 4, ttft_slo_ms=3000)
    usual = request("usual", 1)
    assert served(filled(knobs, late, usual, urgent), knobs, now=5) == ["urgent", "usual", "late"]
    soon = request("soon", 0.2)
    assert served(filled(knobs, soon, late), knobs, now=0.5) == ["late", "soon"]


def test_a_tenant_at_its_limit_is_passed_over_and_its_wait_reason_says_so() -> None:
    knobs = Knobs().changed({"max_active_per_tenant": 1, "max_active": 5})
    scheduler = filled(
        knobs, *(request(f"a{n}", n, tenant="a") for n in range(3)), request("b", 9, tenant="b")
    )
    assert [r.id for r in iter(lambda: scheduler.next(knobs, 10), None)] == ["a0", "b"]
    assert ("a1", "tenant_limit") in scheduler.take_wait_reasons()
    scheduler.finish("a0", 10)
    chosen = scheduler.next(knobs, 11)
    assert chosen is not None
    assert chosen.id == "a1"


def test_the_token_budget_keeps_back_everyone_behind_the_first_and_lets_a_giant_run_alone() -> None:
    knobs = Knobs().changed({"max_tokens_in_flight": 20, "max_active": 5})
    giant = request("giant", 0, prompt_tokens=50, max_tokens=50)
    scheduler = filled(knobs, giant, request("small", 1), request("next", 2))
    assert [r.id for r in iter(lambda: scheduler.next(knobs, 3), None)] == ["giant"]
    assert dict(scheduler.take_wait_reasons()) == {"small": "token_budget", "next": "token_budget"}
    scheduler.finish("giant", 4)
    assert [r.id for r in iter(lambda: scheduler.next(knobs, 5), None)] == ["small"]


def test_a_rate_limit_is_each_tenants_own_and_tells_when_the_bucket_has_one_again() -> None:
    knobs = Knobs(rate_limit_rps=2, rate_burst=3)
    scheduler = Scheduler(100)
    verdicts = [scheduler.offer(request(f"a{n}", 0, tenant="a"), knobs, 0) for n in range(4)]
    assert verdicts[:3] == [Accepted()] * 3
    refused = verdicts[3]
    assert isinstance(refused, Rejected)
    assert (refused.reason, refused.retry_after_s) == ("rate_limit", 0.5)
    assert scheduler.offer(request("b", 0, tenant="b"), knobs, 0) == Accepted()
    assert scheduler.offer(request("a9", 0.5, tenant="a"), knobs, 0.5) == Accepted()


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 50)), max_size=60))
def test_a_growing_heap_gives_the_least_whatever_grew(changes: list[tuple[str, int]]) -> None:
    keys: dict[str, int] = {}

    def key(item: str) -> tuple[float] | None:
        return (keys[item],) if item in keys else None

    heap: LazyHeap[str] = LazyHeap(key)
    for item, amount in changes:
        if item not in keys:
            keys[item] = amount
            heap.put(item)
        elif amount % 7 == 0:
            del keys[item]
        else:
            keys[item] += amount
        first = heap.first()
        assert (first is None) == (not keys)
        assert first is None or keys[first] == min(keys.values())


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(["put", "grow", "leave"]),
                  st.integers(0, 40)),
        max_size=80,
    )
)  # fmt: skip
def test_a_rekeyed_heap_gives_the_smallest_key_that_was_put_last(
    acts: list[tuple[str, str, int]],
) -> None:
    keys: dict[str, int] = {}
    heap: RekeyedHeap[str] = RekeyedHeap(lambda item: (keys[item],) if item in keys else None)
    for item, act, amount in acts:
        if act == "put":
            keys[item] = amount
            heap.put(item)
        elif act == "leave":
            keys.pop(item, None)
            heap.discard(item)
        elif item in keys:
            keys[item] += amount
        first = heap.first()
        assert (first is None) == (not keys)
        assert first is None or keys[first] == min(keys.values())


def test_of_equal_keys_the_one_that_came_to_its_key_last_goes_last() -> None:
    """A tenant that was served comes behind one that has waited at the same service."""
    keys = {"a": 0.0, "b": 1.0}
    heap: RekeyedHeap[str] = RekeyedHeap(lambda item: (keys[item],) if item in keys else None)
    heap.put("a")
    heap.put("b")
    assert heap.first() == "a"
    keys["a"] = 1.0
    assert heap.first() == "b"
    keys["b"] = 2.0
    assert heap.first() == "a"


@pytest.mark.parametrize("kind", [LazyHeap, RekeyedHeap])
def test_what_left_behind_the_first_takes_no_memory(kind: type[LazyHeap[int]]) -> None:
    here = {0}
    heap = kind(lambda item: (float(item),) if item in here else None)
    heap.put(0)
    for item in range(1, 5_000):
        here.add(item)
        heap.put(item)
        here.discard(item)
        heap.discard(item)
        assert heap.first() == 0
    assert len(heap._heap) < 40


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_pick_among_ten_thousand_asks_for_few_keys(
    policy: PolicyName, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    within = POLICIES[policy].within

    def counted(request: Request, knobs: Knobs, now: float, reply: float) -> Key:
        nonlocal asked
        asked += 1
        return within(request, knobs, now, reply)

    monkeypatch.setitem(POLICIES, policy, POLICIES[policy]._replace(within=counted))
    knobs = Knobs().changed({"policy": policy, "queue_max": 20_000, "max_active": 4000})
    scheduler = Scheduler(1000)
    rng = random.Random(1)
    for n in range(10_000):
        each = request(str(n), n * 1e-3, tenant=f"t{n % 100}", priority=rng.randint(0, 3))
        scheduler.offer(each, knobs, n * 1e-3)
    asked = 0
    for _ in range(500):
        chosen = scheduler.next(knobs, 10.0)
        assert chosen is not None
        scheduler.emitted(chosen.id, 5)
    assert asked / 500 < 20


def test_a_weight_is_a_share_of_the_service() -> None:
    knobs = one("fair_share", tenant_weights="gold:3")
    gold = [request(f"g{n}", 0, tenant="gold") for n in range(40)]
    free = [request(f"f{n}", 0, tenant="free") for n in range(40)]
    order = served(filled(knobs, *gold, *free), knobs, tokens=8)
    assert sum(id[0] == "g" for id in order[:40]) == 30


def test_terms_weigh_until_the_knob_says_otherwise() -> None:
    scheduler = Scheduler(1000, {"gold": Terms(weight=3), "silver": Terms(weight=2)})
    knobs = one("fair_share", tenant_weights="gold:5")
    assert scheduler.next(knobs, 0) is None
    weights = [scheduler.weight(name) for name in ("gold", "silver", "free")]
    assert weights == [5, 2, 1]


def test_turning_to_fair_share_forgives_what_was_given_before() -> None:
    fifo, fair = one("fifo"), one("fair_share")
    scheduler = filled(fifo, *(request(f"a{n}", n, tenant="a") for n in range(30)))
    scheduler.offer(request("b0", 30, tenant="b"), fifo, 30)
    for _ in range(20):
        chosen = scheduler.next(fifo, 40)
        assert chosen is not None
        scheduler.emitted(chosen.id, 50)
        scheduler.finish(chosen.id, 40)
    for n in range(1, 10):
        scheduler.offer(request(f"b{n}", 40 + n, tenant="b"), fifo, 40 + n)
    order = served(scheduler, fair, tokens=8)
    assert sum(id[0] == "b" for id in order[:10]) == 5


def test_other_weights_forgive_what_was_given_under_the_old() -> None:
    fair = one("fair_share", tenant_weights="a:0.01")
    scheduler = filled(
        fair, *(request(f"{tenant}{n}", n, tenant=tenant) for n in range(9) for tenant in "ab")
    )
    for _ in range(3):
        chosen = scheduler.next(fair, 40)
        assert chosen is not None
        scheduler.emitted(chosen.id, 8)
        scheduler.finish(chosen.id, 40)
    scheduler.next(even := fair.changed({"tenant_weights": ""}), 40)
    fairness = scheduler.fairness()
    assert fairness is not None
    assert fairness.gap <= fairness.bound
    scheduler.finish(next(entry.id for entry in scheduler.entries if not entry.waits), 40)
    order = served(scheduler, even, tokens=8)
    assert abs(sum(id[0] == "b" for id in order[:8]) - 4) <= 1


def test_a_knob_that_is_not_of_the_order_orders_nothing_anew() -> None:
    knobs = one("priority", max_active_per_tenant=1, max_active=3)
    scheduler = filled(knobs, *(request(f"a{n}", n, tenant="a", priority=-n) for n in range(3)))
    assert [r.id for r in iter(lambda: scheduler.next(knobs, 9), None)] == ["a2"]
    queue = scheduler._queue
    wider = knobs.changed({"max_active_per_tenant": 2})
    assert [r.id for r in iter(lambda: scheduler.next(wider, 9), None)] == ["a1"]
    assert scheduler._queue is queue


def test_the_gap_is_told_only_under_fair_share_and_while_two_wait() -> None:
    fifo, fair = one("fifo"), one("fair_share", tenant_weights="a:0.5")
    scheduler = filled(fifo, request("a", 0, tenant="a"), request("a2", 0, tenant="a"))
    assert scheduler.fairness() is None
    assert scheduler.next(fair, 1) is not None
    assert scheduler.fairness() is None
    scheduler.offer(request("b", 1, tenant="b"), fair, 1)
    fairness = scheduler.fairness()
    assert fairness is not None
    assert fairness.tenants == 2
    # 4 prompt and at most 12 tokens in flight, over the lightest weight of 0.5
    assert fairness.bound == 2 * OUTPUT_WEIGHT * 12 / 0.5


def test_shortest_first_learns_how_long_replies_are_per_tenant_and_prompt_length() -> None:
    knobs = one("shortest_first", shortest_aging_tps=0)
    scheduler = Scheduler(1000)
    for n in range(4):
        for tenant, tokens in (("terse", 2), ("wordy", 60)):
            each = request(f"{tenant}{n}", n, tenant=tenant, max_tokens=100)
            scheduler.offer(each, knobs, n)
            scheduler.next(knobs, n)
            scheduler.emitted(each.id, tokens)
            scheduler.finish(each.id, n, complete=True)
    wordy = request("w", 10, tenant="wordy", max_tokens=90)
    terse = request("t", 11, tenant="terse", max_tokens=100)
    other_length = request("o", 12, tenant="terse", max_tokens=70, prompt_tokens=9)
    for each in (wordy, terse, other_length):
        scheduler.offer(each, knobs, 12)
    assert served(scheduler, knobs) == ["t", "w", "o"]
    for each in (wordy, terse, other_length):
        scheduler.offer(each, knobs, 12)
    asked = one("shortest_first", shortest_aging_tps=0, length_estimate="max_tokens")
    assert served(scheduler, asked) == ["o", "w", "t"]


def test_what_is_learned_of_lengths_is_bounded_and_never_above_what_is_asked() -> None:
    lengths = OutputLengths()
    for n in range(10_100):
        lengths.learn(request("x", tenant=f"t{n}"), 5)
    assert len(lengths._kinds) == 10_000
    known = request("k", tenant="t", max_tokens=3)
    for _ in range(10):
        lengths.learn(known, 50)
    assert lengths.expect(known) == 3
