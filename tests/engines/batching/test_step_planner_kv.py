"""Running out of KV: who is preempted, what it costs, and that all still end."""

from __future__ import annotations

from llmserve.engines.batching.block_pool import BlockPool
from support.stepping import Stepper


def test_the_youngest_is_preempted_and_recomputes_prompt_and_reply_as_prefill() -> None:
    run = Stepper(kv_blocks=4, block_size=4)
    old, young = run.add("old", 7, 4), run.add("young", 7, 4)
    assert run.step() == {"old": "p7>", "young": "p7>"}
    assert run.step() == {"old": "d1>", "young": "d1>"}  # both blocks of both are full now
    assert run.step() == {"old": "d1>"}
    assert [seq.id for seq in run.last.preempted] == ["young"]
    assert (young.computed, young.generated, young.preemptions) == (0, 2, 1)
    assert (run.running, run.waiting, old.preemptions) == (["old"], ["young"], 0)
    assert run.step() == {"old": "d1>"}  # 3 blocks held, young would need 3 of 4
    assert run.step() == {"young": "p9>"}
    assert run.step() == {"young": "d1>"}
    assert run.finished == ["old", "young"]


def test_one_that_finds_no_block_may_be_the_youngest_itself() -> None:
    run = Stepper(kv_blocks=4, block_size=4)
    run.add("old", 5, 6)
    run.add("young", 8, 6)
    assert run.step() == {"old": "p5>", "young": "p8>"}
    assert run.step() == {"old": "d1>"}
    assert [seq.id for seq in run.last.preempted] == ["young"]
    assert run.planner.kv_used_blocks == 2


def test_a_preempted_one_waits_in_front_of_all_who_never_ran() -> None:
    run = Stepper(kv_blocks=6, block_size=4, knobs={"max_num_seqs": 3})
    for id in "abcd":
        run.add(id, 7, 8)
    run.step()
    run.step()
    assert run.step() == {"a": "d1>", "b": "d1>"}
    assert run.waiting == ["c", "d"]
    run.steps()
    assert sorted(run.finished) == ["a", "b", "c", "d"]


def test_several_preempted_in_one_plan_keep_their_order() -> None:
    run = Stepper(kv_blocks=7, block_size=4, knobs={"max_num_batched_tokens": 18})
    run.add("a", 20, 8)
    run.add("b", 1, 8)
    run.add("c", 1, 8)
    assert run.step() == {"a": "p18"}
    assert run.step() == {"a": "p2>", "b": "p1>", "c": "p1>"}
    assert run.planner.pool.free == 0
    assert run.step() == {"a": "d1>", "b": "d1>"}  # the sixth block of a was c's
    assert run.waiting == ["c"]


def test_nobody_slips_into_the_room_that_a_preemption_leaves() -> None:
    run = Stepper(kv_blocks=4, block_size=4)
    run.add("old", 8, 8)
    run.add("young", 8, 8)
    run.step()
    run.add("tiny", 1, 1)
    assert run.step() == {"old": "d1>"}
    assert run.planner.pool.free == 1  # tiny would fit
    assert run.waiting == ["young", "tiny"]
    assert dict(run.last.wait_reasons) == {"young": "kv", "tiny": "kv"}


def test_admission_leaves_room_for_prompts_that_are_half_computed() -> None:
    run = Stepper(
        kv_blocks=6,
        block_size=4,
        knobs={"max_num_batched_tokens": 8, "long_prefill_token_threshold": 4},
    )
    run.add("a", 16, 2)
    run.add("b", 12, 2)
    assert run.step() == {"a": "p4"}  # 5 blocks are free, but 3 of them are a's already
    assert run.reasons == {"b": "kv"}
    run.steps()
    assert not any(plan.preempted for plan in run.plans)


def test_one_preempted_after_it_was_planned_leaves_its_tokens_to_others() -> None:
    run = Stepper(kv_blocks=3, block_size=4)
    run.add("a", 3, 9)
    run.add("b", 1, 9)
    run.add("c", 1, 9)
    run.step()
    run.set(max_num_batched_tokens=2)
    assert run.step() == {"a": "d1>", "b": "d1>"}
    # c is served first now, then a, who needs a second block: c's
    assert run.step() == {"a": "d1>", "b": "d1>"}
    assert [seq.id for seq in run.last.preempted] == ["c"]


def test_thrashing_room_still_lets_every_request_end_in_order_of_admission() -> None:
    run = Stepper(kv_blocks=5, block_size=2, knobs={"max_num_seqs": 8})
    for index in range(12):
        run.add(f"r{index}", 1 + index % 4, 6)
    run.steps(most=500)
    assert sorted(run.finished, key=lambda id: int(id[1:])) == [f"r{i}" for i in range(12)]


def test_blocks_go_out_once_and_come_back_whole() -> None:
    pool = BlockPool(5, 4)
    a: list[int] = []
    b: list[int] = []
    pool.take(a, 2)
    pool.take(b, 3)
    assert (sorted(a + b), pool.free, pool.used) == ([0, 1, 2, 3, 4], 0, 5)
    pool.check([a, b])
    pool.give_back(a)
    pool.take(b, 0)
    assert (a, len(b), pool.free) == ([], 3, 2)
    pool.check([a, b])
    assert [pool.needed(tokens) for tokens in (0, 1, 4, 5)] == [0, 1, 1, 2]
