from __future__ import annotations

import struct
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.core.events import (
    Dispatched,
    Event,
    Finished,
    Rejection,
    StepRecorded,
    Submitted,
    WaitReasonChanged,
)
from llmserve.core.types import StepRecord, StepRow, WaitReason
from llmserve.dashboard.batch_tape import (
    KINDS,
    OPEN,
    REQUESTS,
    STEPS,
    UPDATE_BYTES,
    Cursor,
    TapeLog,
    TapeNews,
)


def submitted(id: str, t: float = 0.0) -> Event:
    return Submitted(t=t, request_id=id, tenant="gold", priority=2, prompt_tokens=40, max_tokens=64)


def step(
    *rows: tuple[str, str, int],
    preempted: tuple[str, ...] = (),
    wait_reasons: tuple[tuple[str, WaitReason], ...] = (),
    index: int = 0,
) -> Event:
    record = StepRecord(
        index=index,
        start_s=11.0,
        duration_s=0.5,
        rows=tuple(StepRow(id, "prefill" if k == "p" else "decode", n) for id, k, n in rows),
        running=len(rows),
        waiting=3,
        kv_used_tokens=64,
        kv_capacity_tokens=100,
        max_num_seqs=4,
        max_num_batched_tokens=20,
        preempted=preempted,
        wait_reasons=wait_reasons,
    )
    return StepRecorded(t=11.5, record=record)


def finished(id: str) -> Event:
    return Finished(t=13.0, request_id=id, reason="stop", prompt_tokens=40, completion_tokens=7)


def told(*events: Event) -> TapeNews:
    log = TapeLog(t0=10.0)
    for event in events:
        log(event)
    return log.news(Cursor(), limit=None)


def segments(news: TapeNews) -> list[tuple[object, ...]]:
    """(request, kind, first, last, tokens, KV before); an open one ends at None."""
    found: list[tuple[object, ...]] = []
    for number, first, last, kind, tokens, kv in struct.iter_unpack("<3IHHI", news.segments):
        found.append((number, KINDS[kind], first, None if last == OPEN else last, tokens, kv))
    return found


def test_doing_the_same_from_step_to_step_is_one_segment() -> None:
    news = told(
        submitted("a"), step(("a", "p", 40)), *(step(("a", "d", 1)) for _ in range(5)),
        finished("a"), step(),
    )  # fmt: skip
    assert segments(news) == [(0, "prefill", 0, 0, 40, 0), (0, "decode", 1, 5, 1, 40)]


def test_what_still_goes_on_is_open() -> None:
    assert segments(told(step(("a", "d", 1)), step(("a", "d", 1)))) == [
        (0, "decode", 0, None, 1, 0)
    ]


def test_a_wait_shows_from_its_step_on_and_is_named_once_its_reason_is_told() -> None:
    news = told(
        submitted("a"), step(("b", "d", 1)), WaitReasonChanged(t=0, request_id="a", reason="cap"),
        step(("b", "d", 1)), step(("b", "d", 1), wait_reasons=(("a", "kv"),)),
        step(("b", "d", 1), ("a", "p", 9)),
    )  # fmt: skip
    assert [s for s in segments(news) if s[0] == 0] == [
        (0, "waiting", 0, 0, 0, 0), (0, "cap", 1, 1, 0, 0), (0, "kv", 2, 2, 0, 0),
        (0, "prefill", 3, None, 9, 0),
    ]  # fmt: skip


def test_a_preempted_one_loses_its_kv_and_computes_again() -> None:
    news = told(
        step(("a", "p", 9)), step(("b", "d", 1), preempted=("a",), wait_reasons=(("a", "kv"),)),
        step(("b", "d", 1)), step(("a", "p", 10)),
    )  # fmt: skip
    own = [s for s in segments(news) if s[0] == 0]
    assert own == [
        (0, "prefill", 0, 0, 9, 0),
        (0, "preempted", 1, 2, 0, 0),
        (0, "prefill", 3, None, 10, 0),
    ]
    assert news.rows[0][-2] == 1


def test_who_runs_and_gets_no_token_waits_for_the_budget_and_keeps_its_kv() -> None:
    news = told(step(("a", "d", 1)), step(("b", "d", 1)), step(("a", "d", 1)))
    assert [s for s in segments(news) if s[0] == 0] == [
        (0, "decode", 0, 0, 1, 0),
        (0, "token_budget", 1, 1, 0, 1),
        (0, "decode", 2, None, 1, 1),
    ]


def test_a_chunk_of_another_size_is_another_segment() -> None:
    news = told(step(("a", "p", 16)), step(("a", "p", 16)), step(("a", "p", 8)))
    assert segments(news) == [(0, "prefill", 0, 1, 16, 0), (0, "prefill", 2, None, 8, 32)]


def test_steps_carry_their_time_and_what_they_computed() -> None:
    news = told(step(("a", "p", 16), ("b", "d", 1), index=7))
    assert list(struct.iter_unpack("<df5I", news.steps)) == [(1.0, 0.5, 7, 16, 1, 3, 64)]


def test_a_row_tells_a_request_s_times_and_end() -> None:
    news = told(submitted("a", t=10.5), Dispatched(t=11.0, request_id="a"), finished("a"))
    assert news.rows == [[0, "a", "gold", 2, 40, 0.5, 1.0, None, 3.0, "stop", 7, 0, 0]]


def aborted(id: str, t: float = 13.0) -> Event:
    return Finished(t=t, request_id=id, reason="abort", prompt_tokens=40, completion_tokens=1)


def test_the_record_of_a_step_that_was_under_way_at_an_abort_reopens_nothing() -> None:
    news = told(
        submitted("a"), submitted("b"), step(("a", "d", 1), ("b", "d", 1)),
        aborted("a"), step(("a", "d", 1), ("b", "d", 1)), step(("b", "d", 1)), step(("b", "d", 1)),
    )  # fmt: skip
    assert segments(news) == [(0, "decode", 0, 0, 1, 0), (1, "decode", 0, None, 1, 0)]
    assert [row[9] for row in news.rows] == [None, "abort"]


def test_neither_a_preemption_nor_a_wait_nor_a_second_submission_reopens_what_has_ended() -> None:
    news = told(
        submitted("a"), step(("a", "d", 1)), aborted("a"),
        step(preempted=("a",)), step(wait_reasons=(("a", "kv"),)), submitted("a"), step(),
    )  # fmt: skip
    assert segments(news) == [(0, "decode", 0, 0, 1, 0)]


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["row", "held", "preempt", "end", "new"]))
    )
)
def test_nothing_is_open_of_a_request_that_has_ended_in_whatever_order_it_is_told(
    story: list[tuple[str, str]],
) -> None:
    log, over = TapeLog(), set[str]()
    for id, what in story:
        over |= {id} if what == "end" else set()
        match what:
            case "row":
                log(step((id, "d", 1)))
            case "held":
                log(step(wait_reasons=((id, "cap"),)))
            case "preempt":
                log(step(preempted=(id,)))
            case "end":
                log(aborted(id))
            case _:
                log(submitted(id))
    news = log.news(Cursor(), limit=None)
    names = {row[0]: row[1] for row in news.rows}
    still_open = {names[s[0]] for s in segments(news) if s[3] is None}
    assert not still_open & over


def test_one_refused_at_the_door_has_a_row_and_no_cell() -> None:
    refusal = Rejection(t=11, request_id="a", tenant="t", priority=0, reason="queue_full")
    news = told(refusal, step())
    assert news.rows[0][8:10] == [1.0, "queue_full"]
    assert segments(news) == []


def test_a_reader_gets_only_what_is_new_and_in_the_end_all() -> None:
    log, cursor = TapeLog(0.0), Cursor()
    steps, seen, rows = 0, list[tuple[object, ...]](), 0
    for i in range(50):
        log(submitted(f"r{i}"))
        log(step((f"r{i}", "p", 9)))
        log(finished(f"r{i}"))
        news = log.news(cursor)
        assert news.first_step == steps
        cursor, steps = news.cursor, steps + len(news.steps) // 32
        seen += segments(news)
        rows += len(news.rows)
    assert (steps, rows) == (50, 50)
    assert seen == segments(log.news(Cursor(), limit=None))
    assert log.news(cursor).empty


def crowd(log: TapeLog, steps: int, width: int) -> None:
    """The worst: another half of the requests in every step."""
    for i in range(steps):
        log(step(*((f"r{k}", "d", 1) for k in range(i % 2, width, 2))))


def test_no_update_exceeds_its_bytes_and_the_rest_comes_with_the_next() -> None:
    log, cursor = TapeLog(0.0), Cursor()
    crowd(log, 40, 256)
    parts = []
    while not (news := log.news(cursor)).empty:
        size = len(news.steps) + len(news.segments) + sum(len(str(row)) for row in news.rows)
        assert size <= UPDATE_BYTES
        cursor = news.cursor
        parts += segments(news)
    closed = [s for s in parts if s[3] is not None]
    assert closed == [s for s in segments(log.news(Cursor(), None)) if s[3] is not None]


def test_it_keeps_the_newest_steps_and_requests_and_no_more() -> None:
    log = TapeLog(0.0)
    for i in range(STEPS + 100):
        log(submitted(f"r{i}"))
        log(step((f"r{i}", "p", 1)))
        log(finished(f"r{i}"))
    news = log.news(Cursor(), limit=None)
    assert (news.first_step, len(news.steps) // 32) == (100, STEPS)
    assert len(news.rows) == REQUESTS
    assert log.news(Cursor(steps=5)).first_step == 100


@pytest.mark.parametrize("reason", get_args(WaitReason))
def test_every_reason_for_a_wait_has_a_kind(reason: WaitReason) -> None:
    assert (
        segments(told(submitted("a"), WaitReasonChanged(t=0, request_id="a", reason=reason)))[0][1]
        == reason
    )
