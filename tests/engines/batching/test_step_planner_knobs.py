"""What a changed knob does to those who run, those who wait, and what is told of it."""

from __future__ import annotations

from itertools import pairwise

from support.stepping import Stepper


def test_a_lowered_cap_drains_and_is_told_met_once_all_who_run_fit() -> None:
    run = Stepper(knobs={"max_num_seqs": 4})
    for id, tokens in zip("abcd", (2, 3, 4, 9), strict=True):
        run.add(id, max_tokens=tokens)
    run.add("e")
    run.step()
    run.set(max_num_seqs=2)
    told = []
    for _ in range(3):
        run.step()
        told.append((len(run.last.rows), run.last.satisfied))
    assert told == [(4, []), (3, []), (2, ["max_num_seqs"])]
    assert run.step() == {"d": "d1>", "e": "p4>"}
    assert run.last.satisfied == []


def test_a_cap_lowered_above_what_runs_is_met_at_once() -> None:
    run = Stepper(knobs={"max_num_seqs": 8, "max_num_batched_tokens": 100})
    run.add("a")
    run.step()
    run.set(max_num_seqs=4, max_num_batched_tokens=50)
    run.step()
    assert sorted(run.last.satisfied) == ["max_num_batched_tokens", "max_num_seqs"]


def test_raising_a_cap_while_it_drains_tells_when_the_new_one_is_met() -> None:
    run = Stepper(knobs={"max_num_seqs": 4})
    for id, tokens in zip("abcd", (3, 5, 9, 9), strict=True):
        run.add(id, max_tokens=tokens)
    run.step()
    run.set(max_num_seqs=1)
    run.step()
    run.set(max_num_seqs=3)
    told = []
    for _ in range(4):
        run.step()
        told.append((len(run.last.rows), run.last.satisfied))
    assert told == [(4, []), (3, ["max_num_seqs"]), (3, []), (2, [])]


def test_a_raised_cap_admits_at_the_next_step_and_is_not_told() -> None:
    run = Stepper(knobs={"max_num_seqs": 1})
    for id in "abc":
        run.add(id)
    assert run.step() == {"a": "p4>"}
    run.set(max_num_seqs=3)
    assert run.step() == {"a": "d1>", "b": "p4>", "c": "p4>"}
    assert run.last.satisfied == []


def test_more_running_than_tokens_rotate_so_that_nobody_starves() -> None:
    run = Stepper()
    for id in "abcd":
        run.add(id, max_tokens=50)
    run.add("prefilling", prompt_tokens=40)
    run.set(max_num_batched_tokens=30)
    run.step()
    run.set(max_num_batched_tokens=2)
    rounds = [run.step() for _ in range(9)]
    assert all(len(rows) == 2 for rows in rounds)  # one token each, of the long prompt too
    for at in range(7):  # five running, two tokens: everyone once in any three steps
        assert {id for rows in rounds[at : at + 3] for id in rows} == {*"abcd", "prefilling"}


def test_each_wait_is_told_with_its_reason_and_only_once() -> None:
    run = Stepper(knobs={"max_num_seqs": 1})
    run.add("a", max_tokens=3)
    run.add("b", max_tokens=1)
    run.add("c", max_tokens=1)
    reasons = []
    for _ in range(4):
        run.step()
        reasons.append(run.last.wait_reasons)
    assert reasons == [[("b", "cap"), ("c", "cap")], [], [], []]


def test_the_head_of_the_line_is_told_when_its_reason_changes() -> None:
    run = Stepper(knobs={"max_num_seqs": 1, "max_num_batched_tokens": 4})
    run.add("a", max_tokens=5)
    run.add("b", prompt_tokens=8)
    run.add("c")
    run.step()
    assert run.last.wait_reasons == [("b", "cap"), ("c", "cap")]
    run.set(max_num_seqs=2, max_num_batched_tokens=1)
    run.step()
    assert run.last.wait_reasons == [("b", "token_budget")]
    run.set(max_num_batched_tokens=4)
    run.step()
    assert run.last.wait_reasons == []  # b is in; c, the head now, still waits for a slot


def test_a_long_line_costs_a_step_no_more_than_its_head() -> None:
    run = Stepper(knobs={"max_num_seqs": 2})
    for index in range(500):
        run.add(f"r{index}", max_tokens=3)
    run.step()
    assert len(run.last.wait_reasons) == 498
    run.set(max_num_seqs=1)
    for _ in range(20):
        run.step()
        assert len(run.last.wait_reasons) <= 1


def test_none_runs_one_request_at_a_time_from_first_token_to_last() -> None:
    run = Stepper(knobs={"batching": "none"})
    run.add("a", max_tokens=3)
    run.add("b", max_tokens=2)
    assert [list(run.step()) for _ in range(5)] == [["a"], ["a"], ["a"], ["b"], ["b"]]
    assert run.reasons == {"b": "cap"}


def test_a_static_batch_is_closed_until_its_last_member_is_done() -> None:
    run = Stepper(knobs={"batching": "static", "max_num_seqs": 2})
    for id, tokens in zip("abcd", (1, 3, 1, 1), strict=True):
        run.add(id, max_tokens=tokens)
    assert [set(run.step()) for _ in range(4)] == [{"a", "b"}, {"b"}, {"b"}, {"c", "d"}]
    assert run.reasons == {"c": "batch", "d": "batch"}


def test_latecomers_wait_for_the_next_batch_even_when_there_is_room() -> None:
    run = Stepper(knobs={"batching": "static", "max_num_seqs": 8})
    run.add("a", max_tokens=2)
    run.step()
    run.add("b", max_tokens=1)
    run.add("c", max_tokens=1)
    assert [set(run.step()) for _ in range(2)] == [{"a"}, {"b", "c"}]


def test_a_batch_window_waits_until_it_closes_or_the_batch_is_full() -> None:
    run = Stepper(knobs={"batching": "static", "max_num_seqs": 3, "batch_window_ms": 20})
    run.add("a", max_tokens=1)
    assert run.step() == {}
    assert run.planner.wake_at(run.knobs, run.now) == 0.020
    run.now = 0.015
    run.add("b", max_tokens=1)
    assert run.step() == {}
    assert run.planner.wake_at(run.knobs, run.now) == 0.020
    run.now = 0.020
    assert run.planner.wake_at(run.knobs, run.now) is None
    assert run.step() == {"a": "p4>", "b": "p4>"}
    for id in "cde":
        run.add(id, max_tokens=1)
    assert set(run.step()) == {"c", "d", "e"}


def test_a_window_shortened_while_it_runs_closes_at_once() -> None:
    run = Stepper(knobs={"batching": "static", "batch_window_ms": 5000})
    run.add("a", max_tokens=1)
    assert run.step() == {}
    run.set(batch_window_ms=0)
    assert run.step() == {"a": "p4>"}


def test_a_member_that_was_preempted_comes_back_into_its_own_batch() -> None:
    run = Stepper(kv_blocks=4, knobs={"batching": "static", "max_num_seqs": 2})
    for id in "abc":
        run.add(id, 7, 4)
    run.steps()
    assert run.finished == ["a", "b", "c"]
    assert any(plan.preempted for plan in run.plans)
    ran = [{row.seq.id for row in plan.rows} for plan in run.plans]
    assert all(not ({"a", "b"} & rows) for rows in ran if "c" in rows)


def test_a_batch_whose_members_all_leave_opens_the_next() -> None:
    run = Stepper(knobs={"batching": "static", "max_num_seqs": 2})
    for id in "abc":
        run.add(id)
    run.step()
    run.planner.remove("a")
    run.planner.remove("b")
    assert set(run.step()) == {"c"}


def test_switching_the_batching_in_full_flight_loses_nobody() -> None:
    run = Stepper(knobs={"max_num_seqs": 3})
    ids = [f"r{index}" for index in range(30)]
    for id in ids:
        run.add(id, max_tokens=4)
    modes = ["static", "none", "continuous", "none", "static", "continuous", "static"]
    for mode in modes:
        run.set(batching=mode)
        for _ in range(3):
            run.step()
    run.steps()
    assert sorted(run.finished) == sorted(ids)


def test_switching_to_none_lets_the_running_finish_and_then_goes_one_by_one() -> None:
    run = Stepper(knobs={"max_num_seqs": 3})
    for id in "abcdef":
        run.add(id, max_tokens=3)
    run.step()
    run.set(batching="none")
    sizes = []
    while rows := run.step():
        sizes.append(len(rows))
    assert sizes == [3, 3] + [1] * 9
    assert all(after <= before for before, after in pairwise(sizes))


def test_kept_decode_slots_bound_how_many_prefill_at_once() -> None:
    run = Stepper(knobs={"max_num_seqs": 4, "min_decode_slots": 3, "max_num_batched_tokens": 9})
    for id in "abc":
        run.add(id, max_tokens=5)
    run.add("long", prompt_tokens=12)
    assert run.step() == {"a": "p4>"}
    assert run.step() == {"a": "d1>", "b": "p4>"}
    assert run.step() == {"a": "d1>", "b": "d1>", "c": "p4>"}
    assert run.step() == {"a": "d1>", "b": "d1>", "c": "d1>", "long": "p6"}
    assert run.reasons["c"] == "cap"


def test_kept_decode_slots_always_leave_a_place_to_one_prefill() -> None:
    run = Stepper(knobs={"max_num_seqs": 2, "min_decode_slots": 9})
    for id in "ab":
        run.add(id, max_tokens=2)
    assert run.step() == {"a": "p4>"}
    assert run.step() == {"a": "d1>", "b": "p4>"}
