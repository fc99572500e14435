"""StepLog: the last steps, whole."""

from __future__ import annotations

import msgspec

from llmserve.core.events import Event, StepRecorded
from llmserve.core.types import StepRecord
from llmserve.observe import StepLog
from observe.tape import one_request, step


def folded(*indices: int, capacity: int = 100) -> StepLog:
    log = StepLog(capacity)
    for index in indices:
        log(step(index, index))
    return log


def indices(records: list[StepRecord]) -> list[int]:
    return [record.index for record in records]


def test_the_newest_steps_are_kept() -> None:
    log = folded(*range(5), capacity=3)
    assert indices(log.records()) == [2, 3, 4]
    assert log.total == 5


def test_since_and_limit_choose_among_them() -> None:
    log = folded(*range(6))
    assert indices(log.records(since=2)) == [3, 4, 5]
    assert indices(log.records(since=2, limit=2)) == [4, 5]
    assert indices(log.records(limit=0)) == []
    assert indices(log.records(since=9)) == []


def test_a_reader_that_polls_sees_each_step_once_even_over_a_restart() -> None:
    log = folded(0, 1)
    cursor, seen = log.after(0)
    assert indices(seen) == [0, 1]
    for index in (2, 0, 1):  # the engine restarted after step 2
        log(step(9, index))
    cursor, seen = log.after(cursor)
    assert indices(seen) == [2, 0, 1]
    assert log.after(cursor) == (5, [])


def test_a_reader_too_slow_gets_what_is_left() -> None:
    log = folded(0, capacity=2)
    cursor, _ = log.after(0)
    for index in range(1, 6):
        log(step(index, index))
    assert indices(log.after(cursor)[1]) == [4, 5]


def test_gaps_in_the_count_are_noticed_and_a_restart_is_none() -> None:
    assert folded(0, 1, 4, 5).missing == 2
    assert folded(0, 1, 2, 0, 1).missing == 0


def test_other_events_are_not_its_business() -> None:
    log = StepLog()
    for event in one_request():
        log(event)
    assert log.total == 0


def test_a_frame_has_a_row_per_step_and_the_tape_one_per_request_in_it() -> None:
    log = StepLog()
    log(step(1, 0, decode=2))
    second = record(step(2, 1, decode=1, prefill=7))
    log.fold(msgspec.structs.replace(second, wait_reasons=(("w", "kv"),)))
    frame = log.to_frame()
    assert frame["wait_reasons"].tolist() == [{}, {"w": "kv"}]
    assert frame[["step", "rows", "prefill_tokens", "decode_tokens"]].to_numpy().tolist() == [
        [0, 2, 0, 2],
        [1, 2, 7, 1],
    ]
    tape = log.tape()
    assert tape[["step", "request_id", "kind", "tokens"]].to_numpy().tolist() == [
        [0, "d0", "decode", 1],
        [0, "d1", "decode", 1],
        [1, "d0", "decode", 1],
        [1, "p", "prefill", 7],
    ]
    assert list(StepLog().to_frame().columns) == list(frame.columns)
    assert list(StepLog().tape().columns) == list(tape.columns)


def record(event: Event) -> StepRecord:
    assert isinstance(event, StepRecorded)
    return event.record
