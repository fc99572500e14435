"""LiveStats: exact figures of a sliding window."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.core.events import CacheLooked, DeviceSampled, Event, FairnessSampled, StepRecorded
from llmserve.core.types import StepRecord
from llmserve.observe import LiveStats, Snapshot, Summary
from llmserve.observe import stats as stats_module
from observe.tape import (
    dispatched,
    finished,
    first,
    one_request,
    refused,
    step,
    submitted,
    tokens,
)


def folded(*events: Event, window_s: float = 30.0) -> LiveStats:
    stats = LiveStats(window_s)
    for event in events:
        stats(event)
    return stats


def test_one_request_gives_its_latencies_by_their_definitions() -> None:
    snapshot = folded(*one_request()).snapshot()
    assert snapshot.queue.p50 == 1
    assert snapshot.ttft.p50 == 3, "the wait in the queue is part of TTFT"
    assert snapshot.e2e.p50 == 6
    assert snapshot.tpot.p50 == 1, "(end - first token) / (tokens - 1) = 3 / 3"
    assert (snapshot.itl.n, snapshot.itl.mean) == (2, 1.5), "tokens that came together: one gap"
    assert snapshot.cached_tokens_total == 4


def test_the_order_of_first_token_and_tokens_does_not_matter() -> None:
    events = one_request()
    events[2], events[3] = events[3], events[2]
    assert folded(*events).snapshot() == folded(*one_request()).snapshot()


def test_rates_count_the_window_or_the_session_where_that_is_younger() -> None:
    stats = folded(*one_request(), window_s=10)
    young = stats.snapshot(now=8)
    assert (young.span_s, young.generated_tokens_per_s) == (8, 4 / 8)
    assert young.prompt_tokens_per_s == 10 / 8
    old = stats.snapshot(now=13.5)
    assert old.generated_tokens_per_s == 3 / 10, "the token at t=3 has left the window"
    assert old.prompt_tokens_per_s == 0
    assert old.generated_tokens_total == 4, "totals are of the session"


def test_running_and_waiting_follow_every_way_to_leave() -> None:
    stats = LiveStats()
    for name in "abcd":
        stats(submitted(0, name))
    stats(dispatched(1, "a"))
    stats(dispatched(1, "b"))
    assert counts(stats) == (2, 2)
    stats(finished(2, "a"))
    stats(refused(2, "c", "queue_timeout"))
    assert counts(stats) == (1, 1)
    stats(finished(3, "d", reason="abort", tokens=0))  # cancelled while it waited
    stats(finished(3, "b", reason="error"))
    assert counts(stats) == (0, 0)
    snapshot = stats.snapshot()
    assert snapshot.finished == {"stop": 1, "abort": 1, "error": 1}
    assert snapshot.refused == {"queue_timeout": 1}


def counts(stats: LiveStats) -> tuple[int, int]:
    snapshot = stats.snapshot()
    return snapshot.running, snapshot.waiting


def test_a_refusal_at_the_door_changes_no_count_but_its_own() -> None:
    stats = folded(submitted(0, "a"), refused(0, "never-submitted"))
    assert counts(stats) == (0, 1)
    assert stats.snapshot().refused == {"queue_full": 1}


def test_latencies_are_of_requests_that_ended_well() -> None:
    stats = folded(submitted(0), dispatched(0), first(1), finished(9, reason="abort", tokens=5))
    snapshot = stats.snapshot()
    assert (snapshot.e2e.n, snapshot.tpot.n, snapshot.ttft.n) == (0, 0, 1)


def test_a_request_seen_only_from_its_middle_is_passed_over() -> None:
    snapshot = folded(*one_request()[1:]).snapshot()
    assert (snapshot.ttft.n, snapshot.itl.n, snapshot.e2e.n, snapshot.running) == (0, 0, 0, 0)
    assert snapshot.generated_tokens_total == 4


def test_steps_give_their_pace_their_fill_and_the_room_left() -> None:
    stats = folded(step(1, 0, decode=2), step(3, 1, took=1.5, decode=3, prefill=7, kv=60))
    snapshot = stats.snapshot()
    assert snapshot.batch_fill == (2 + 10) / 40
    assert snapshot.seq_fill == (2 + 4) / 8
    assert snapshot.step_time.mean == 1.0
    assert snapshot.steps_per_s == 2 / 2
    assert snapshot.kv_use == 0.6


def test_kv_in_use_is_none_once_nothing_runs_though_no_step_tells_of_it() -> None:
    stats = folded(submitted(0, "d0"), submitted(0, "d1"), dispatched(0, "d0"), dispatched(0, "d1"))
    stats(step(1, decode=2, kv=60))
    stats(finished(2, "d0", reason="abort"))
    assert stats.snapshot().kv_used_tokens == 60  # as the last step left it: one still runs
    stats(finished(2, "d1", reason="abort"))
    assert (stats.snapshot().kv_used_tokens, stats.snapshot().kv_use) == (0, 0.0)
    stats(step(2.5, 1, decode=2, kv=61))  # was under way
    assert stats.snapshot().kv_used_tokens == 0


def test_kv_of_requests_that_were_never_seen_to_come_is_believed() -> None:
    stats = folded(submitted(0), dispatched(0), step(1, decode=2, kv=60), finished(2))
    assert stats.snapshot().kv_used_tokens == 60


def test_without_steps_there_is_no_fill_rather_than_zero() -> None:
    snapshot = folded(*one_request()).snapshot()
    assert (snapshot.batch_fill, snapshot.seq_fill, snapshot.kv_use) == (None, None, None)


def test_preemptions_are_counted() -> None:
    assert folded(step(1, preempted=("a", "b"))).snapshot().preemptions_total == 2


def test_what_speculation_proposed_and_what_of_it_stood_is_counted() -> None:
    assert folded(step(1)).snapshot().acceptance is None
    guessing = StepRecorded(t=1, record=StepRecord(
        index=0, start_s=0, duration_s=1, rows=(), running=1, waiting=0, kv_used_tokens=0,
        kv_capacity_tokens=9, max_num_seqs=4, max_num_batched_tokens=64, draft_tokens=8,
        accepted_tokens=6,
    ))  # fmt: skip
    seen = folded(guessing, guessing).snapshot()
    assert (seen.draft_tokens_total, seen.accepted_tokens_total, seen.acceptance) == (16, 12, 0.75)


def test_the_last_sample_of_each_device_is_kept() -> None:
    def sample(t: float, name: str) -> DeviceSampled:
        return DeviceSampled(t=t, kind="gpu", name=name, used_bytes=int(t), total_bytes=100)

    snapshot = folded(sample(1, "x"), sample(2, "y"), sample(3, "x")).snapshot()
    assert [(d.name, d.used_bytes) for d in snapshot.devices] == [("x", 3), ("y", 2)]


def test_a_session_without_events_has_a_snapshot() -> None:
    snapshot = LiveStats().snapshot(now=5)
    assert (snapshot.ttft, snapshot.generated_tokens_per_s, snapshot.span_s) == (Summary(), 0, 0)
    assert LiveStats().snapshot().t == 0


def test_a_window_that_outgrows_the_buffers_says_so_and_keeps_its_rates_true(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stats_module, "DELIVERIES", 100)
    stats = folded(submitted(0), dispatched(0), first(0))
    for index in range(1000):
        stats(tokens(index / 100))
    snapshot = stats.snapshot()
    assert snapshot.capped
    assert snapshot.itl.n == 100
    assert snapshot.generated_tokens_per_s == pytest.approx(100, rel=0.02)
    assert not stats.snapshot(window_s=0.5).capped, "a shorter window is whole"


def test_a_snapshot_is_json_and_comes_back_equal() -> None:
    snapshot = folded(*one_request(), step(7)).snapshot()
    assert msgspec.json.decode(msgspec.json.encode(snapshot), type=Snapshot) == snapshot


def test_the_text_names_the_figures_that_matter() -> None:
    text = str(folded(*one_request()).snapshot())
    assert "TTFT  p50 3 s  p95 3 s  p99 3 s  n 1" in text


@given(
    latencies=st.lists(st.floats(0, 1e4), min_size=1, max_size=200),
    window=st.floats(0.5, 50),
    now=st.floats(0, 250),
)
def test_percentiles_are_numpys_over_exactly_the_window(
    latencies: list[float], window: float, now: float
) -> None:
    stats = LiveStats(window)
    for index, latency in enumerate(latencies):  # one first token a second
        stats(submitted(index - latency, str(index)))
        stats(first(float(index), str(index)))
    inside = [
        index - (index - latency)  # as floats subtract
        for index, latency in enumerate(latencies)
        if now - window < index <= now
    ]
    summary = stats.snapshot(now).ttft
    assert summary.n == len(inside)
    if inside:
        expected = [float(np.percentile(inside, p)) for p in (50, 95, 99)]
        assert [summary.p50, summary.p95, summary.p99] == pytest.approx(expected, rel=1e-12)


def test_the_gap_between_tenants_is_of_this_window_and_cache_look_ups_are_counted() -> None:
    stats = LiveStats(window_s=10)
    stats(FairnessSampled(t=1, gap=30, bound=400, tenants=2))
    stats(CacheLooked(t=2, request_id="a", tenant="x", hit=True))
    stats(CacheLooked(t=2, request_id="b", tenant="x", hit=False))
    near, far = stats.snapshot(5), stats.snapshot(12)
    assert (near.fairness_gap, near.fairness_bound) == (30, 400)
    assert (far.fairness_gap, far.fairness_bound) == (None, None)
    assert (far.cache_hits_total, far.cache_misses_total) == (1, 1)
