"""Policies, limits and the door on every engine there is: one account of who goes first.

One place, and somebody in it; all others come meanwhile, in one go on the loop, so that the order
in which they get their first tokens is the policy's word and no matter of time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest

from llmserve.core.events import (
    Dispatched,
    Event,
    FairnessSampled,
    Finished,
    FirstToken,
    KnobsChanged,
    WaitReasonChanged,
)
from llmserve.core.tenants import Terms
from llmserve.core.types import Outcome, Request, SamplingParams
from llmserve.serving.stream import Refused
from support.serving import MESSAGES, PATIENCE_S, Serving

ONE = {"max_active": 1, "admission_slo": "off"}
CHAT = "/v1/chat/completions"
SHORT = {"messages": MESSAGES, "max_tokens": 2}


class House:
    """Of one test: requests of its own, and what became of them."""

    def __init__(self, server: Serving) -> None:
        self.server = server
        self.service = server.service
        self.events: list[Event] = []
        self._names: dict[str, str] = {}

    def asked(self, name: str, ago_s: float = 0.0, tokens: int = 4, **fields: Any) -> Request:
        id = self.service.new_id("alike")
        self._names[id] = name
        return Request(
            id=id,
            prompt_ids=tuple(range(20, 28)),
            sampling=SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True),
            arrival=self.service.clock.now() - ago_s,
            **fields,
        )

    def names(self, kind: type[Any]) -> list[str]:
        """Of whom such an event tells, in its order; without the one who held the place."""
        ids = [event.request_id for event in self.events if isinstance(event, kind)]
        return [self._names[id] for id in ids if self._names.get(id, "holder") != "holder"]

    def race(
        self,
        requests: Sequence[Request],
        meanwhile: Callable[[], Awaitable[object]] | None = None,
        **knobs: object,
    ) -> list[str]:
        """The order of first tokens. All have been served in full."""

        async def run() -> list[Outcome]:
            holder = self.service.submit(self.asked("holder", tokens=400))
            streams = [self.service.submit(request) for request in requests]
            if meanwhile is not None:
                await meanwhile()
            holder.cancel()
            return await asyncio.gather(*(stream.collect() for stream in streams))

        with self.server.knobs(**{**ONE, **knobs}):
            outcomes = self.server.runtime.call(run(), PATIENCE_S)
        assert [len(o.token_ids) for o in outcomes] == [r.sampling.max_tokens for r in requests]
        return self.names(FirstToken)

    def crowd(self, requests: Sequence[Request], **knobs: object) -> int:
        """The most that were in the engine at once. All have been served."""

        async def run() -> None:
            streams = [self.service.submit(request) for request in requests]
            await asyncio.gather(*(stream.collect() for stream in streams))

        with self.server.knobs(**{"admission_slo": "off", **knobs}):
            self.server.runtime.call(run(), PATIENCE_S)
        here = most = 0
        for event in self.events:
            here += isinstance(event, Dispatched) - isinstance(event, Finished)
            most = max(most, here)
        return most


@pytest.fixture
def house(server: Serving) -> Iterator[House]:
    made = House(server)
    server.bus.attach(made.events.append)
    yield made
    server.bus.detach(made.events.append)


def test_fifo_goes_by_arrival_whatever_is_claimed(house: House) -> None:
    requests = [house.asked(str(n), priority=-n) for n in range(4)]
    assert house.race(requests) == ["0", "1", "2", "3"]


def test_the_lower_class_number_goes_first_unless_the_other_has_aged(house: House) -> None:
    low, high = house.asked("low", priority=2), house.asked("high", priority=0)
    aged = house.asked("aged", ago_s=31, priority=3)
    order = house.race([low, high, aged], policy="priority", priority_aging_s=10)
    assert order == ["aged", "high", "low"]


def test_strict_priority_lets_age_count_for_nothing(house: House) -> None:
    aged, high = house.asked("aged", ago_s=99, priority=1), house.asked("high", priority=0)
    order = house.race([aged, high], policy="priority", priority_aging_s=None)
    assert order == ["high", "aged"]


def test_fair_shares_are_kept_between_a_flood_and_a_trickle(house: House) -> None:
    flood = [house.asked("flood", tenant="flood") for _ in range(8)]
    trickle = [house.asked("trickle", tenant="trickle") for _ in range(3)]
    order = house.race([*flood, *trickle], policy="fair_share")
    assert order[:7].count("trickle") == 3
    told = [event for event in house.events if isinstance(event, FairnessSampled)]
    assert told
    assert all(event.gap <= event.bound for event in told)


def test_weights_are_shares(house: House) -> None:
    requests = [house.asked(name, tenant=name) for _ in range(8) for name in ("gold", "free")]
    order = house.race(requests, policy="fair_share", tenant_weights="gold:3,free:1")
    assert 5 <= order[:8].count("gold") <= 7


def test_fair_share_goes_by_class_within_a_tenant(house: House) -> None:
    requests = [
        house.asked("a low", tenant="a", priority=9), house.asked("a high", tenant="a"),
        house.asked("b low", tenant="b", priority=9), house.asked("b high", tenant="b"),
    ]  # fmt: skip
    order = house.race(requests, policy="fair_share", priority_aging_s=None)
    assert sorted(order[:2]) == ["a high", "b high"]


def test_the_shortest_goes_first(house: House) -> None:
    requests = [house.asked("long", tokens=40), house.asked("short", tokens=2)]
    order = house.race(requests, policy="shortest_first", length_estimate="max_tokens")
    assert order == ["short", "long"]


def test_the_earliest_deadline_goes_first_and_who_is_late_already_goes_last(house: House) -> None:
    requests = [
        house.asked("late", ago_s=5, ttft_slo_ms=1000),
        house.asked("usual"),
        house.asked("urgent", ttft_slo_ms=60_000),
    ]
    order = house.race(requests, policy="deadline", ttft_slo_ms=600_000)
    assert order == ["urgent", "usual", "late"]


def test_a_policy_turned_mid_run_orders_anew_who_waits_and_loses_nobody(house: House) -> None:
    async def turn() -> None:
        await house.service.set_knobs({"policy": "priority", "priority_aging_s": None})

    requests = [house.asked(str(n), priority=-n) for n in range(5)]
    assert house.race(requests, turn) == ["4", "3", "2", "1", "0"]


def test_a_users_policy_serves_and_one_that_raises_gives_way_to_fifo(house: House) -> None:
    def last_then_none(waiting: Any, ledger: Any, knobs: Any) -> str:
        if len(waiting) < 3:
            raise ZeroDivisionError("out of ideas")
        return str(waiting[-1].id)

    async def take_over() -> None:
        await house.service.use_policy(last_then_none)

    requests = [house.asked(str(n)) for n in range(4)]
    assert house.race(requests, take_over) == ["3", "2", "0", "1"]
    assert "out of ideas" in str(house.service.policy_error)
    (change,) = [e for e in house.events if isinstance(e, KnobsChanged) and "removed" in e.source]
    assert change.changed == {"policy": ("custom", "fifo")}


@pytest.mark.parametrize("limit", ["knob", "terms"])
def test_a_tenant_at_its_limit_waits_while_others_pass(house: House, limit: str) -> None:
    async def set_terms(terms: dict[str, Terms]) -> None:
        house.service.set_terms(terms)

    loud = [house.asked("loud", tenant="loud", tokens=20) for _ in range(3)]
    quiet = house.asked("quiet", tenant="quiet")
    call = house.server.runtime.call
    if limit == "terms":
        call(set_terms({"loud": Terms(max_active=1)}))
    try:
        house.crowd(
            [*loud, quiet], max_active=8,
            max_active_per_tenant=1 if limit == "knob" else None,
        )  # fmt: skip
    finally:
        call(set_terms({}))
    assert house.names(Dispatched)[:2] == ["loud", "quiet"]
    held = [
        e for e in house.events if isinstance(e, WaitReasonChanged) and e.reason == "tenant_limit"
    ]
    assert held
    here = 0
    for event in house.events:
        if isinstance(event, Dispatched | Finished) and event.request_id != quiet.id:
            here += 1 if isinstance(event, Dispatched) else -1
            assert here <= 1


def test_the_token_budget_and_max_active_bound_who_is_in_the_engine(house: House) -> None:
    def eight() -> list[Request]:
        return [house.asked(str(n), tokens=12) for n in range(8)]  # 20 tokens each, with prompts

    assert house.crowd(eight(), max_active=8, max_tokens_in_flight=45) == 2
    house.events.clear()
    assert house.crowd(eight(), max_active=3) == 3
    reasons = {event.reason for event in house.events if isinstance(event, WaitReasonChanged)}
    assert "cap" in reasons


def test_a_share_of_the_kv_room_holds_back_a_second_giant_of_a_tenant(house: House) -> None:
    capacity = house.server.info.kv_capacity_tokens
    size = 1000
    if capacity * 0.001 >= 2 * size:
        pytest.fail("the smallest share holds two giants: make them larger")

    async def run() -> list[str]:
        giants = [
            house.service.submit(house.asked(name, tenant="giant", tokens=size - 8))
            for name in ("first", "second")
        ]
        other = await house.service.submit(house.asked("other", tenant="other")).collect()
        assert len(other.token_ids) == 4
        told = house.names(Dispatched)
        for giant in giants:
            giant.cancel()
        return told

    share = max(0.001, 1.5 * size / capacity)
    with house.server.knobs(kv_share_per_tenant=share, max_active=8, admission_slo="off"):
        assert house.server.runtime.call(run(), PATIENCE_S) == ["first", "other"]
    told = [event.reason for event in house.events if isinstance(event, WaitReasonChanged)]
    assert "tenant_limit" in told


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("limit", "soonest", "latest"),
    [
        ({"rate_limit_rps": 0.001, "rate_burst": 1}, 500, 1000),
        ({"rate_limit_tps": 0.1, "rate_burst_tokens": 10}, 10, 10_000),
    ],
    ids=["requests", "tokens"],
)
def test_a_tenant_over_its_rate_is_429_and_told_when_to_return(
    server: Serving,
    http: httpx.Client,
    limit: dict[str, object],
    soonest: int,
    latest: int,
    stream: bool,
) -> None:
    mine = {**SHORT, "stream": stream, "tenant": f"rated {sorted(limit)[0]} {stream}"}
    with server.knobs(**limit):
        assert http.post(CHAT, json=mine).status_code == 200
        answer = http.post(CHAT, json=mine)
        other = http.post(CHAT, json={**mine, "tenant": f"other {mine['tenant']}"})
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "rate_limit"
    assert soonest <= int(answer.headers["retry-after"]) <= latest
    assert other.status_code == 200


def test_choices_that_are_refused_together_cost_their_tenant_nothing(
    server: Serving, http: httpx.Client
) -> None:
    mine = {**SHORT, "tenant": "with choices"}
    with server.knobs(rate_limit_rps=0.001, rate_burst=3):
        assert http.post(CHAT, json=mine).status_code == 200
        refused = http.post(CHAT, json={**mine, "n": 3})
        assert refused.status_code == 429
        assert 500 <= int(refused.headers["retry-after"]) <= 1000
        assert http.post(CHAT, json={**mine, "n": 2}).status_code == 200


def test_what_cannot_meet_its_objective_is_refused_at_the_door_and_told_so(
    server: Serving, http: httpx.Client
) -> None:
    with server.knobs(admission_slo="refuse", ttft_slo_ms=600_000):
        assert http.post(CHAT, json=SHORT).status_code == 200  # a first token has been measured
        by_body = http.post(CHAT, json={**SHORT, "ttft_slo_ms": 1})
        by_header = http.post(CHAT, json=SHORT, headers={"X-TTFT-SLO-MS": "1"})
        both = http.post(
            CHAT, json={**SHORT, "ttft_slo_ms": 600_000.0}, headers={"X-TTFT-SLO-MS": "1"}
        )
    for late in (by_body, by_header):
        assert late.status_code == 429
        assert late.json()["error"]["code"] == "slo"
        assert "0.001 s are allowed" in late.json()["error"]["message"]
        assert "retry-after" in late.headers
    assert both.status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"ttft_slo_ms": 0}, "ttft_slo_ms"), ({"ttft_slo_ms": -5}, "ttft_slo_ms"),
        ({"ttft_slo_ms": "soon"}, "ttft_slo_ms"), ({"ttft_slo_ms": True}, "ttft_slo_ms"),
        ({"ttft_slo_ms": 1e12}, "ttft_slo_ms"), ({"ttft_slo_ms": 10**400}, "ttft_slo_ms"),
        ({"tenant": 5}, "tenant"), ({"tenant": ""}, "tenant"), ({"tenant": "a\nb"}, "tenant"),
        ({"priority": "high"}, "priority"), ({"priority": 0.5}, "priority"),
        ({"priority": 2**40}, "priority"),
    ],
)  # fmt: skip
def test_a_claim_that_makes_no_sense_is_400_and_names_the_field(
    http: httpx.Client, fields: dict[str, object], param: str
) -> None:
    answer = http.post(CHAT, json={**SHORT, **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("header", ["X-TTFT-SLO-MS", "X-Priority"])
@pytest.mark.parametrize("value", ["soon", "nan", "", "1e99", "-1e99"])
def test_a_header_that_makes_no_sense_is_400(http: httpx.Client, header: str, value: str) -> None:
    assert http.post(CHAT, json=SHORT, headers={header: value}).status_code == 400


def test_every_refusal_is_counted_by_reason_priority_and_tenant(
    house: House, http: httpx.Client
) -> None:
    async def fill_and_knock() -> None:
        holder = house.service.submit(house.asked("holder", tokens=400))
        waits = house.service.submit(house.asked("waits", tenant="slow", priority=4))
        with pytest.raises(Refused):
            house.service.submit(house.asked("one too many", tenant="counted", priority=7))
        with pytest.raises(Refused):
            await waits.collect()
        holder.cancel()
        await asyncio.sleep(0)

    with house.server.knobs(**ONE, queue_max=1, queue_timeout_s=0.05):
        house.server.runtime.call(fill_and_knock(), PATIENCE_S)
    lines = http.get("/metrics").text.splitlines()
    for reason, priority, tenant in (
        ("queue_full", "7", "counted"), ("queue_timeout", "4", "slow"),
    ):  # fmt: skip
        told = [
            line for line in lines
            if line.startswith("llmserve_request_refused_total")
            and f'reason="{reason}"' in line
            and f'priority="{priority}"' in line
            and f'tenant="{tenant}"' in line
        ]  # fmt: skip
        assert [line.rpartition(" ")[2] for line in told] == ["1.0"]
