"""What batching wins, in exact figures: the whole path on virtual time."""

from __future__ import annotations

import itertools

import pytest

from llmserve.bench.load.workload import Workload
from llmserve.core.knobs import KnobError, Knobs
from llmserve.core.types import Request
from llmserve.engines.simulator.costs import StepCost
from llmserve.lab import Run, run_virtual, sweep
from llmserve.scheduling.user_policy import Choice, LedgerView, PolicyError

CLASSIC = Workload(concurrency=64, requests=64, prompt_tokens=16, max_tokens=32)
"""64 equal requests arriving together."""
RAGGED = Workload(rate=10, requests=80, prompt_tokens=16, max_tokens=(8, 128), seed=1)
PATIENT = {"queue_timeout_s": 3600, "request_timeout_s": 3600}


def classic(batching: str) -> Run:
    return run_virtual(CLASSIC, {"batching": batching, "max_num_seqs": 16})


def ragged(batching: str) -> Run:
    return run_virtual(RAGGED, {"batching": batching, "max_num_seqs": 16, **PATIENT})


def test_equal_requests_arriving_together_gain_nothing_from_continuous_batching() -> None:
    """Four waves of 25 ms + 31 × 10 ms, static or continuous.

    The members of a batch are equal and start together, so they end in the same step. No place
    is ever empty while another is taken, and an empty place is all that continuous batching has
    to fill. Ragged lengths or arrivals over time are what tells the two apart.
    """
    static, continuous = classic("static"), classic("continuous")
    assert static.makespan_s == pytest.approx(4 * (0.025 + 31 * 0.010), abs=1e-9)
    assert continuous.makespan_s == static.makespan_s
    assert [r.rows for r in continuous.records] == [r.rows for r in static.records]
    assert continuous.report.seq_fill == 1.0


def test_one_at_a_time_takes_sixteen_times_as_long() -> None:
    assert classic("none").makespan_s == pytest.approx(16 * 1.340, abs=1e-9)


def test_ragged_lengths_over_time_are_where_continuous_batching_wins() -> None:
    runs = [ragged("none"), ragged("static"), ragged("continuous")]
    none, static, continuous = (run.figures() for run in runs)
    assert none["ttft_mean_ms"] > 30 * static["ttft_mean_ms"]
    assert static["ttft_mean_ms"] > 10 * continuous["ttft_mean_ms"]
    assert static["e2e_mean_ms"] > 1.4 * continuous["e2e_mean_ms"]
    assert none["makespan_s"] > static["makespan_s"] > continuous["makespan_s"]
    generated = {sum(row.completion_tokens for row in run.rows) for run in runs}
    assert generated == {sum(arrival.max_tokens for arrival in RAGGED.arrivals())}
    # its price: a token waits for the prefill of those who join beside it
    assert (static["itl_p95_ms"], continuous["itl_p95_ms"]) == pytest.approx((10, 35))


def test_an_overload_of_ragged_requests_ends_sooner_and_with_fuller_batches() -> None:
    """The same requests all at once: only the raggedness is left to tell the two apart."""
    at_once = Workload(concurrency=80, requests=80, prompt_tokens=16, max_tokens=(8, 128), seed=1)
    static, continuous = (
        run_virtual(at_once, {"batching": batching, "max_num_seqs": 16, **PATIENT})
        for batching in ("static", "continuous")
    )
    assert static.report.seq_fill == pytest.approx(0.611, abs=0.001)
    assert continuous.report.seq_fill == pytest.approx(0.881, abs=0.001)
    assert (static.makespan_s, continuous.makespan_s) == pytest.approx((6.295, 5.775))


def test_a_place_freed_by_the_front_door_is_taken_in_the_very_next_step() -> None:
    """Even where the front hands over just as many as run: no step is lost on the way."""
    run = run_virtual(CLASSIC, {"max_num_seqs": 16, "max_active": 16})
    assert run.makespan_s == pytest.approx(1.340, abs=1e-9)
    assert all(len(record.rows) == 16 for record in run.records)


def test_the_same_run_gives_the_same_figures_and_another_seed_others() -> None:
    one, two = (run_virtual(RAGGED, jitter=0.1, seed=5) for _ in range(2))
    assert one.figures() == two.figures()
    assert one.records == two.records
    assert run_virtual(RAGGED, jitter=0.1, seed=6).figures() != one.figures()


def test_a_window_costs_every_lone_request_its_length() -> None:
    alone = Workload(rate=1, process="constant", requests=3, prompt_tokens=16, max_tokens=4)
    frame = sweep(
        alone,
        {"batching": ["static"], "batch_window_ms": [0, 5, 10, 20], "max_num_seqs": [2, 4, 8, 16]},
    )
    assert len(frame) == 16
    added = frame["ttft_mean_ms"] - frame["batch_window_ms"]
    assert added.tolist() == pytest.approx([25.0] * 16, abs=1e-6)


def test_a_window_gathers_neighbours_into_one_batch() -> None:
    """Arrivals 4 ms apart; the first of each batch waits for the rest."""
    close = Workload(rate=250, process="constant", requests=4, prompt_tokens=16, max_tokens=2)
    batches = {
        window: len([r for r in steps if r.prefill_tokens])
        for window in (0, 5, 20)
        for steps in [
            run_virtual(
                close, {"batching": "static", "batch_window_ms": window, "max_num_seqs": 4}
            ).records
        ]
    }
    assert batches == {0: 2, 5: 2, 20: 1}


def test_a_batch_that_is_full_does_not_wait_for_its_window() -> None:
    run = run_virtual(
        CLASSIC, {"batching": "static", "batch_window_ms": 10_000, "max_num_seqs": 16}
    )
    assert run.makespan_s == pytest.approx(1.340, abs=1e-9)


def test_costs_per_token_and_small_memory_reach_the_engine() -> None:
    cost = StepCost(prefill_ms=5, decode_ms=2, prefill_token_ms=0.1, decode_token_ms=0.01)
    one = Workload(concurrency=1, requests=1, prompt_tokens=50, max_tokens=11)
    run = run_virtual(one, cost=cost, kv_capacity_tokens=64)
    assert run.makespan_s == pytest.approx(0.005 + 0.005 + 10 * 0.00201, abs=1e-9)
    crowd = Workload(concurrency=8, requests=16, prompt_tokens=16, max_tokens=40)
    tight = run_virtual(crowd, {"max_num_seqs": 8}, kv_capacity_tokens=160)
    assert sum(row.preemptions for row in tight.rows) > 0
    assert {row.finish_reason for row in tight.rows} == {"length"}
    assert {row.completion_tokens for row in tight.rows} == {40}


def test_frames_hold_every_request_step_and_row() -> None:
    run = classic("continuous")
    requests, steps, tape = run.requests(), run.steps(), run.tape()
    assert (len(requests), len(steps)) == (64, 128)
    assert len(tape) == sum(len(record.rows) for record in run.records)
    assert requests["completion_tokens"].tolist() == [32] * 64
    ends = steps["start_s"] + steps["duration_s"]
    gaps = [b - a for a, b in itertools.pairwise([0.0, *ends])]
    assert gaps == pytest.approx(steps["duration_s"].tolist())


def test_a_knob_that_is_none_is_refused_before_anything_runs() -> None:
    with pytest.raises(KnobError, match="max_num_seq"):
        run_virtual(CLASSIC, {"max_num_seq": 3})


def test_a_policy_of_ones_own_can_be_tried_on_virtual_time() -> None:
    def last_come(waiting: tuple[Request, ...], ledger: LedgerView, knobs: Knobs) -> str:
        return max(waiting, key=lambda each: (each.arrival, each.id)).id

    def order(policy: Choice | None) -> list[str]:
        run = run_virtual(
            Workload(rate=100, process="constant", requests=6), {"max_active": 1}, policy=policy
        )
        return run.requests().sort_values("ttft_s").index.tolist()

    fifo, own = order(None), order(last_come)
    assert fifo[1:] != own[1:]
    with pytest.raises(PolicyError, match="raised TypeError"):
        run_virtual(Workload(requests=1), policy=lambda waiting: "nobody")  # type: ignore[arg-type, misc]  # that is the point


def test_at_twice_the_capacity_slo_admission_keeps_goodput_near_capacity() -> None:
    house = {"max_num_seqs": 8, "queue_max": 100_000, "ttft_slo_ms": 500, **PATIENT}
    sizes = {"prompt_tokens": 32, "max_tokens": (8, 64), "seed": 1}
    capacity = run_virtual(Workload(concurrency=16, requests=120, **sizes), house).report  # type: ignore[arg-type]  # plain fields
    twice = Workload(rate=2 * capacity.requests_per_s, duration_s=12, **sizes)  # type: ignore[arg-type]  # plain fields

    def goodput(admission: str) -> float:
        run = run_virtual(twice, {**house, "admission_slo": admission})
        good = [row for row in run.rows if row.ttft_s is not None and row.ttft_s <= 0.5]
        return len(good) / run.makespan_s

    assert goodput("off") < 0.2 * capacity.requests_per_s
    assert goodput("refuse") > 0.8 * capacity.requests_per_s
