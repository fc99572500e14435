"""The planner of groups plans what the step planner plans, without looking at each sequence."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core.knobs import Knobs
from llmserve.core.types import Request, SamplingParams
from llmserve.engines.batching.lockstep import LockstepPlanner
from llmserve.engines.batching.sequence import Plan, Sequence
from llmserve.engines.batching.step_planner import StepPlanner
from support.examples import examples


def nothing(seq: Sequence) -> None:
    """All replies are zeros."""


def request(
    id: str, prompt: tuple[int, ...], reply: int, tenant: str = "a", *, scored: bool = False
) -> Request:
    sampling = SamplingParams(max_tokens=reply, prompt_logprobs=0 if scored else None)
    return Request(id=id, prompt_ids=prompt, sampling=sampling, arrival=0.0, tenant=tenant)


class Pair:
    """Both planners, side by side."""

    def __init__(self, blocks: int, size: int, *, caching: bool) -> None:
        same = {"kv_blocks": blocks, "block_size": size, "max_model_len": 200}
        self.plain = StepPlanner(**same, prefix_caching=caching, fill=nothing)
        self.group = LockstepPlanner(**same, prefix_caching=caching, fill=nothing)
        self.plan: Plan | None = None
        self.now = 0.0

    def add(self, one: Request) -> None:
        for planner in (self.plain, self.group):
            planner.add(one, self.now)

    def remove(self, request_id: str) -> None:
        for planner in (self.plain, self.group):
            planner.remove(request_id)

    def step(self, knobs: Knobs) -> bool:
        """One step of both; whether there was one."""
        self.now += 0.01
        plain, group = self.plain.plan(knobs, self.now), self.group.plan(knobs, self.now)
        assert (plain is None) == (group is None)
        assert self.plain.kv_used_blocks == self.group.kv_used_blocks
        if plain is None or group is None:
            return False
        self._compare(plain, group)
        self.group.loosened.clear()
        drawn = {row.seq.id: 0 for row in plain.rows if row.samples}
        self.plain.commit(plain, drawn)
        self.group.commit(group, drawn)
        done = [row.seq.id for row in plain.rows if row.seq.full]
        full = [seq.id for seq in self.group.take_full()]
        assert full + [row.seq.id for row in group.rows if row.seq.full] == done
        for request_id in done:
            self.remove(request_id)
        assert list(self.plain.pool.shelved) == list(self.group.pool.shelved)
        return True

    def _compare(self, plain: Plan, group: Plan) -> None:
        alone = {(row.seq.id, row.start, row.tokens, row.kind) for row in group.rows}
        rows = {(row.seq.id, row.start, row.tokens, row.kind) for row in plain.rows}
        assert alone <= rows
        assert group.together == len(rows) - len(alone)
        assert all(kind == "decode" and tokens == 1 for _, _, tokens, kind in rows - alone)
        assert [seq.id for seq in plain.preempted] == [seq.id for seq in group.preempted]
        assert plain.wait_reasons == group.wait_reasons
        assert plain.cached_tokens == group.cached_tokens
        assert plain.satisfied == group.satisfied
        assert list(self.plain.running)[-1].id == list(self.group.running)[-1].id
        for seq in self.plain.running:
            twin = self.group.get(seq.id)
            assert twin is not None
            assert self.group.generated(twin) == seq.generated


@given(seed=st.integers(0, 2**32), steps=st.integers(1, 120))
@settings(max_examples=examples(200))
def test_both_planners_plan_the_same_steps_whatever_comes(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    size = rng.choice((1, 2, 4, 16))
    pair = Pair(rng.choice((16, 24, 60, 400)), size, caching=rng.random() < 0.6)
    room = min(pair.plain.room, 40)
    knobs, here = _some_knobs(rng), 0
    for _ in range(steps):
        for _ in range(rng.choice((0, 0, 0, 1, 4))):
            here += 1
            prompt = (rng.choice((0, 1)),) * rng.randint(1, min(12, room - 2))
            scored = rng.random() < 0.2
            reply = rng.choice((0, 3, 30) if scored else (1, 3, 30))
            pair.add(request(f"r{here}", prompt, reply, rng.choice("ab"), scored=scored))
        if rng.random() < 0.1:
            pair.remove(f"r{rng.randint(1, here + 1)}")
        if rng.random() < 0.1:
            knobs = _some_knobs(rng)
        pair.step(knobs)
        if rng.random() < 0.2:
            pair.plain.check()
            pair.group.check()
            pair.group.loosened.clear()


def _some_knobs(rng: random.Random) -> Knobs:
    return Knobs(
        max_num_seqs=rng.choice((1, 6, 20)),
        max_num_batched_tokens=rng.choice((1, 4, 30, 2048)),
        long_prefill_token_threshold=rng.choice((0, 0, 1, 3)),
        min_decode_slots=rng.choice((0, 0, 2)),
        batching=rng.choice(("continuous", "continuous", "continuous", "static", "none")),
    )


def test_steps_that_are_alike_are_taken_in_one_go_up_to_the_next_end() -> None:
    pair = Pair(100, 4, caching=False)
    pair.add(request("short", (1, 2, 3), 10))
    pair.add(request("long", (1, 2, 3, 4, 5), 30, "b"))
    knobs = Knobs()
    pair.step(knobs)
    plan = pair.group.plan(knobs, 1.0)
    assert plan is not None
    assert (plan.rows, plan.together) == ([], 2)
    assert pair.group.by_tenant == {"a": 1, "b": 1}
    assert pair.group.alike(plan, 1000) == 8
    assert pair.group.alike(plan, 3) == 3
    pair.group.skip(8)
    pair.group.commit(plan, {})
    assert [seq.id for seq in pair.group.take_full()] == ["short"]
    for _ in range(9):
        pair.plain.commit(_planned(pair.plain, knobs), {"short": 0, "long": 0})
    pair.remove("short")
    assert pair.group.kv_used_blocks == pair.plain.kv_used_blocks == pair.plain.pool.needed(14)
    while pair.step(knobs):
        pass
    assert not pair.group.running
    pair.group.check()


def test_no_step_is_skipped_that_memory_may_not_allow() -> None:
    pair = Pair(6, 4, caching=False)
    for name in "ab":
        pair.add(request(name, (1, 2, 3), 21))
    knobs = Knobs()
    pair.step(knobs)
    plan = pair.group.plan(knobs, 1.0)
    assert plan is not None
    most = pair.group.alike(plan, 1000)
    assert 0 < most < 19
    pair.group.skip(most)  # BlockPool would raise where there is none left
    assert pair.group.pool.free >= 0
    assert pair.group.kv_used_blocks <= 6


def test_tokens_that_nobody_reads_are_no_tenants_service() -> None:
    pair = Pair(100, 4, caching=False)
    pair.add(request("one", (1,), 9))
    pair.add(request("two", (1,), 9))
    pair.step(Knobs())
    pair.step(Knobs())
    pair.group.mute("one")
    pair.group.mute("one")
    assert pair.group.by_tenant == {"a": 1}
    pair.remove("one")
    assert pair.group.by_tenant == {"a": 1}
    pair.remove("two")
    assert pair.group.by_tenant == {}


def test_a_shortcut_is_refused_beside_a_prefill() -> None:
    pair = Pair(100, 4, caching=False)
    pair.add(request("one", (1,), 9))
    pair.step(Knobs())
    pair.add(request("two", (1,) * 9, 9))
    plan = pair.group.plan(Knobs(), 1.0)
    assert plan is not None
    assert (len(plan.rows), plan.together) == (1, 1)
    assert pair.group.alike(plan, 1000) == 0


def _planned(planner: StepPlanner, knobs: Knobs) -> Plan:
    plan = planner.plan(knobs, 1.0)
    assert plan is not None
    return plan


@pytest.mark.parametrize("size", [1, 3, 16])
def test_blocks_of_a_group_are_those_of_its_members(size: int) -> None:
    """Whoever leaves takes as many along as its own tokens fill."""
    pair = Pair(1000 // size, size, caching=False)
    for number in range(5):
        pair.add(request(f"r{number}", (1,) * (1 + 2 * number), 12 + 3 * number))
    while pair.step(Knobs()):
        pass
    assert pair.group.kv_used_blocks == 0
    assert pair.group.pool.free == pair.group.pool.blocks
    pair.group.pool.check([])
