"""RequestLog: one row per request."""

from __future__ import annotations

from llmserve.core.events import Event, Finished, WaitReasonChanged
from llmserve.observe import RequestLog
from observe.tape import dispatched, finished, first, one_request, refused, step, submitted, tokens


def folded(*events: Event, capacity: int = 100) -> RequestLog:
    log = RequestLog(capacity)
    for event in events:
        log(event)
    return log


def test_a_row_tells_the_whole_life_of_a_request() -> None:
    (row,) = folded(*one_request(t=10)).rows()
    assert (row.state, row.arrival, row.finish_reason) == ("done", 10, "stop")
    assert (row.queue_s, row.ttft_s, row.e2e_s) == (1, 3, 6)
    assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens) == (10, 4, 4)


def test_a_row_tells_why_a_request_waits() -> None:
    events: list[Event] = [
        submitted(0),
        WaitReasonChanged(t=1, request_id="a", reason="cap"),
        WaitReasonChanged(t=2, request_id="a", reason="kv", step=5),
    ]
    (row,) = folded(*events).rows()
    assert (row.state, row.hold_reason, row.queue_s) == ("waiting", "kv", None)


def test_tokens_are_counted_while_they_come() -> None:
    (row,) = folded(submitted(0), dispatched(1), first(2), tokens(2), tokens(3, n=3)).rows()
    assert (row.state, row.completion_tokens, row.ttft_s, row.e2e_s) == ("active", 4, 2, None)


def test_preemptions_are_counted_per_request() -> None:
    log = folded(submitted(0), dispatched(0), step(1, preempted=("a",)), step(2, preempted=("a",)))
    assert log.rows()[0].preemptions == 2


def test_an_error_is_told_in_its_own_words() -> None:
    end = Finished(
        t=3, request_id="a", reason="error", prompt_tokens=1, completion_tokens=0, error="it fell"
    )
    (row,) = folded(submitted(0), end).rows()
    assert (row.state, row.finish_reason, row.error) == ("done", "error", "it fell")


def test_a_request_refused_at_the_door_has_a_row_without_made_up_figures() -> None:
    (row,) = folded(refused(4, "x", "no_place", tenant="t", priority=3)).rows()
    assert (row.state, row.finish_reason, row.arrival) == ("refused", "no_place", 4)
    assert (row.tenant, row.priority, row.prompt_tokens, row.ttft_s) == ("t", 3, None, None)


def test_one_refused_after_waiting_keeps_its_arrival() -> None:
    (row,) = folded(submitted(1), refused(9, reason="queue_timeout")).rows()
    assert (row.state, row.arrival, row.e2e_s) == ("refused", 1, 8)


def test_those_that_ended_first_fall_out_first_and_live_ones_never() -> None:
    log = folded(*(submitted(t, id) for t, id in enumerate("abcd")), capacity=3)
    assert [row.id for row in log.rows()] == ["a", "b", "c", "d"], "four are live: all stay"
    log(finished(10, "c"))
    assert [row.id for row in log.rows()] == ["a", "b", "d"]
    log(finished(11, "b"))
    log(finished(12, "a"))
    log(submitted(13, "e"))
    assert [row.id for row in log.rows()] == ["a", "d", "e"]


def test_rows_come_by_arrival_and_a_limit_gives_the_newest() -> None:
    log = folded(*(submitted(t, id) for t, id in enumerate("abc")))
    assert [row.id for row in log.rows(limit=2)] == ["b", "c"]
    assert log.rows(limit=0) == []


def test_a_row_read_once_does_not_change_under_its_reader() -> None:
    log = folded(submitted(0))
    (row,) = log.rows()
    log(dispatched(1))
    assert row.state == "waiting"


def test_the_frame_has_a_row_per_request_and_all_columns_even_when_empty() -> None:
    frame = folded(*one_request(0, "a"), submitted(9, "b")).to_frame()
    assert list(frame.index) == ["a", "b"]
    assert frame.loc["a", "ttft_s"] == 3
    spent = frame.loc["a", ["queue_s", "prefill_s", "decode_s"]]
    assert spent.sum() == frame.loc["a", "e2e_s"]
    assert spent["queue_s"] + spent["prefill_s"] == 3
    assert frame.loc["b", ["prefill_s", "decode_s"]].isna().all()
    assert list(RequestLog().to_frame().columns) == list(frame.columns)
