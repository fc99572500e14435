"""The front scheduler and the step planner under everything at once, on virtual time.

Each generated run is a short interleaving of arrivals, leavers, steps, knob changes, switches of
policy (a user's among them), other terms with tenants, and engine failures, and then all is
drained. RUNS of them in all, a sixth for each policy to begin with: 1,500, and 10,200 in
`make test-long`.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from llmserve.core.knobs import SPECS, Knobs
from llmserve.core.tenants import Terms
from llmserve.core.types import Request
from llmserve.scheduling.user_policy import LedgerView, UserPolicy
from support.examples import examples
from support.front import Front
from support.requests import request

RUNS = examples(1500)
STEPS_A_RUN = 12

POLICIES = SPECS["policy"].choices
SWITCHES: tuple[dict[str, object], ...] = tuple({"policy": name} for name in POLICIES)
TURNS: tuple[dict[str, object], ...] = (
    *SWITCHES,
    {"max_active": 1}, {"max_active": 3}, {"max_active": None},
    {"max_num_seqs": 1}, {"max_num_seqs": 4, "min_decode_slots": 3}, {"min_decode_slots": 0},
    {"max_active_per_tenant": 1}, {"kv_share_per_tenant": 0.3}, {"max_tokens_in_flight": 30},
    {"max_active_per_tenant": None, "kv_share_per_tenant": None, "max_tokens_in_flight": None},
    {"policy": "fair_share", "tenant_weights": "a:3,b:0.5"}, {"tenant_weights": ""},
    {"priority_aging_s": 0.05}, {"priority_aging_s": None}, {"priority_aging_s": 1.0},
    {"queue_max": 2}, {"queue_max": 50, "queue_timeout_s": 0.1}, {"queue_timeout_s": 60},
    {"rate_limit_tps": 50, "rate_burst_tokens": 60}, {"rate_limit_rps": 5, "rate_burst": 3},
    {"rate_limit_tps": None, "rate_limit_rps": None, "admission_slo": "off"},
    {"admission_slo": "refuse", "ttft_slo_ms": 40}, {"request_timeout_s": 0.2},
    {"batching": "static", "batch_window_ms": 20}, {"batching": "continuous"},
    {"max_num_batched_tokens": 3}, {"length_estimate": "max_tokens"},
)  # fmt: skip


TERMS: tuple[dict[str, Terms], ...] = (
    {}, {"a": Terms(max_active=1)}, {"b": Terms(weight=4), "c": Terms(weight=0.25, max_active=2)},
    {"a": Terms(rate_limit_tps=40, weight=2), "c": Terms(rate_limit_rps=3)},
)  # fmt: skip


def largest_first(waiting: tuple[Request, ...], ledger: LedgerView, knobs: Knobs) -> str:
    return max(waiting, key=lambda each: (len(each.prompt_ids), each.id)).id


class FrontMachine(RuleBasedStateMachine):
    policy = "fifo"

    def __init__(self) -> None:
        super().__init__()
        self.front = Front(UserPolicy(largest_first, lambda: 0.0))

    @initialize(
        seats=st.sampled_from([1, 1, 2, 3, None]), aging=st.sampled_from([0.02, 0.1, None])
    )
    def open(self, seats: int | None, aging: float | None) -> None:
        """Few slots, so that there is a queue and a policy has something to say."""
        self.front.turn(policy=self.policy, max_active=seats, priority_aging_s=aging)

    @rule(
        count=st.integers(1, 9), tenant=st.sampled_from("abc"), priority=st.integers(0, 3),
        prompt=st.integers(1, 14), reply=st.integers(1, 20),
    )  # fmt: skip
    def arrive(self, count: int, tenant: str, priority: int, prompt: int, reply: int) -> None:
        """A few alike, a moment apart."""
        for n in range(count):
            self.front.now += 0.003
            self.front.arrive(
                request(
                    f"{self.front.arrived}", self.front.now, tenant=tenant, priority=priority,
                    prompt_tokens=prompt, max_tokens=1 + (reply + 5 * n) % 20,
                )
            )  # fmt: skip

    @precondition(lambda self: self.front.waiting or self.front.active)
    @rule(which=st.integers(0, 30))
    def leave(self, which: int) -> None:
        here = [*self.front.waiting, *self.front.active]
        self.front.leave(here[which % len(here)])

    @precondition(lambda self: self.front.active)
    @rule(count=st.sampled_from([1, 3, 10, 70]))
    def steps(self, count: int) -> None:
        for _ in range(count):
            if not self.front.step(0.01):
                break

    @rule(change=st.sampled_from(TURNS))
    def turn(self, change: dict[str, object]) -> None:
        self.front.turn(**change)

    @rule(terms=st.sampled_from(TERMS))
    def set_terms(self, terms: dict[str, Terms]) -> None:
        self.front.set_terms(terms)

    @rule(tenant=st.sampled_from("abc"))
    def ask_for_kept(self, tenant: str) -> None:
        self.front.ask_for_kept(request("kept", self.front.now, tenant=tenant))

    @rule(seconds=st.sampled_from([0.01, 0.15, 5.0]))
    def wait(self, seconds: float) -> None:
        self.front.now += seconds
        self.front.pump()

    @precondition(lambda self: self.front.active)
    @rule()
    def fail(self) -> None:
        self.front.fail()

    def teardown(self) -> None:
        self.front.drain()


class PriorityMachine(FrontMachine):
    policy = "priority"


class FairShareMachine(FrontMachine):
    policy = "fair_share"


class ShortestFirstMachine(FrontMachine):
    policy = "shortest_first"


class DeadlineMachine(FrontMachine):
    policy = "deadline"


class CustomMachine(FrontMachine):
    policy = "custom"


MACHINES: tuple[type[FrontMachine], ...] = (
    FrontMachine, PriorityMachine, FairShareMachine, ShortestFirstMachine, DeadlineMachine,
    CustomMachine,
)  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.policy)
def test_every_promise_holds_under_any_interleaving(machine: type[FrontMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=RUNS // len(MACHINES),
            stateful_step_count=STEPS_A_RUN,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


def test_there_is_a_machine_for_each_policy() -> None:
    assert [machine.policy for machine in MACHINES] == list(POLICIES)
