"""Who is in a step, and with how many tokens."""

from __future__ import annotations

import pytest

from llmserve.engines.batching.step_planner import StepPlanner
from support.requests import request
from support.stepping import Stepper


def test_a_request_is_prefilled_then_decoded_and_ends_at_its_limit() -> None:
    run = Stepper()
    run.add("a", prompt_tokens=5, max_tokens=3)
    assert [run.step() for _ in range(4)] == [{"a": "p5>"}, {"a": "d1>"}, {"a": "d1>"}, {}]
    assert run.finished == ["a"]
    assert run.planner.kv_used_blocks == 0


def test_a_newcomer_joins_at_the_next_step_beside_those_who_decode() -> None:
    run = Stepper()
    run.add("a")
    run.step()
    run.add("b", prompt_tokens=6)
    assert run.step() == {"a": "d1>", "b": "p6>"}
    assert run.step() == {"a": "d1>", "b": "d1>"}


def test_a_finished_place_is_taken_in_the_very_next_step() -> None:
    run = Stepper(knobs={"max_num_seqs": 2})
    run.add("a", max_tokens=1)
    run.add("b")
    run.add("c")
    assert run.step() == {"a": "p4>", "b": "p4>"}
    assert run.step() == {"b": "d1>", "c": "p4>"}


def test_a_long_prompt_is_cut_into_chunks_and_decodes_go_first() -> None:
    run = Stepper(knobs={"max_num_batched_tokens": 8})
    run.add("a", prompt_tokens=3)
    run.add("b", prompt_tokens=14)
    assert run.step() == {"a": "p3>", "b": "p5"}
    assert run.step() == {"a": "d1>", "b": "p7"}
    assert run.step() == {"a": "d1>", "b": "p2>"}
    assert run.step() == {"a": "d1>", "b": "d1>"}


def test_the_threshold_leaves_room_for_others_beside_a_long_prompt() -> None:
    run = Stepper(knobs={"max_num_batched_tokens": 8, "long_prefill_token_threshold": 3})
    run.add("long", prompt_tokens=7)
    run.add("short", prompt_tokens=4)
    assert run.step() == {"long": "p3", "short": "p3"}
    assert run.step() == {"long": "p3", "short": "p1>"}
    assert run.step() == {"long": "p1>", "short": "d1>"}


def test_the_line_is_first_come_first_served_and_nobody_overtakes() -> None:
    run = Stepper(kv_blocks=5, knobs={"max_num_seqs": 4})
    run.add("a", prompt_tokens=12, max_tokens=2)
    run.add("big", prompt_tokens=16, max_tokens=2)
    run.add("small", prompt_tokens=1, max_tokens=2)
    assert run.step() == {"a": "p12>"}
    assert dict(run.last.wait_reasons) == {"big": "kv", "small": "kv"}
    assert run.step() == {"a": "d1>"}
    assert run.step() == {"big": "p16>", "small": "p1>"}


@pytest.mark.parametrize(
    ("prompt_tokens", "room"),
    [(41, "kv"), (50, "model")],
)
def test_a_prompt_that_can_never_run_is_refused_at_once(prompt_tokens: int, room: str) -> None:
    planner = StepPlanner(
        kv_blocks=10 if room == "kv" else 100, block_size=4, max_model_len=50
    )
    planner.add(request("fits", prompt_tokens=prompt_tokens - 1), 0.0)
    with pytest.raises(ValueError, match="exceed"):
        planner.add(request("too long", prompt_tokens=prompt_tokens), 0.0)
    assert [seq.id for seq in planner.waiting] == ["fits"]


def test_an_empty_prompt_and_a_name_in_use_are_refused() -> None:
    run = Stepper()
    run.add("a")
    with pytest.raises(ValueError, match="already here"):
        run.add("a")
    run.step()
    with pytest.raises(ValueError, match="already here"):
        run.add("a")
    with pytest.raises(ValueError, match="empty"):
        run.add("b", prompt_tokens=0)


def test_a_reply_that_fills_all_kv_ends_by_length_and_never_stalls() -> None:
    run = Stepper(kv_blocks=3, block_size=4)
    seq = run.add("a", prompt_tokens=5, max_tokens=100)
    run.steps()
    assert run.finished == ["a"]
    assert len(seq.tokens) == 13  # 12 stored, and the last one that is never read


def test_removing_a_running_request_frees_its_blocks_at_once() -> None:
    run = Stepper()
    run.add("a", prompt_tokens=9)
    run.step()
    assert run.planner.kv_used_blocks == 3
    assert run.planner.remove("a") is not None
    assert run.planner.kv_used_blocks == 0
    assert run.planner.remove("a") is None
    assert run.step() == {}


def test_leaving_while_waiting_keeps_the_order_of_the_rest() -> None:
    run = Stepper(knobs={"max_num_seqs": 1})
    for id in "abcd":
        run.add(id, max_tokens=1)
    run.step()
    run.planner.remove("c")
    run.steps()
    assert run.finished == ["a", "b", "d"]


def test_a_client_that_leaves_during_a_step_gets_no_token_and_harms_nobody() -> None:
    run = Stepper()
    run.add("a")
    leaver = run.add("b")
    plan = run.planner.plan(run.knobs, 0.0)
    assert plan is not None
    run.planner.remove("b")
    again = run.add("b", prompt_tokens=2)
    run.planner.commit(plan, {"a": 7})
    run.planner.check()
    assert (leaver.generated, again.generated, again.computed) == (0, 0, 0)
    assert run.step() == {"a": "d1>", "b": "p2>"}


def test_a_step_that_failed_may_be_planned_again() -> None:
    run = Stepper()
    run.add("a", prompt_tokens=6)
    failed = run.planner.plan(run.knobs, 0.0)
    assert failed is not None
    assert run.step() == {"a": "p6>"}


def test_the_record_tells_the_state_that_the_step_left() -> None:
    run = Stepper(kv_blocks=10, block_size=4, knobs={"max_num_seqs": 1})
    run.add("a", prompt_tokens=5)
    run.add("b", prompt_tokens=2)
    run.step()
    record = run.planner.record(run.last, 3, 10.0, 0.5)
    assert (record.index, record.start_s, record.duration_s) == (3, 10.0, 0.5)
    assert (record.prefill_tokens, record.decode_tokens) == (5, 0)
    assert (record.running, record.waiting) == (1, 1)
    assert (record.kv_used_tokens, record.kv_capacity_tokens) == (8, 40)
    assert (record.max_num_seqs, record.max_num_batched_tokens) == (1, 2048)
    assert record.wait_reasons == (("b", "cap"),)


def test_who_gives_way_goes_to_the_front_and_comes_back_when_another_has_left() -> None:
    run = Stepper()
    for name in "abcd":
        run.add(name, max_tokens=3 if name == "a" else 9)
    run.step()
    plan = run.planner.plan(run.knobs, run.now)
    assert plan is not None
    run.planner.give_way(plan, reversed([*run.planner.running][2:]))
    assert [row.seq.id for row in plan.rows] == ["a", "b"]
    assert [seq.id for seq in plan.preempted] == ["d", "c"]
    run.planner.commit(plan, {"a": 1, "b": 1})
    assert [seq.id for seq in run.planner.waiting] == ["c", "d"]
    run.planner.check()
    assert run.step() == {"a": "d1>", "b": "d1>"}  # its third: a leaves
    assert run.step() == {"b": "d1>", "c": "p5>", "d": "p5>"}
