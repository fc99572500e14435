"""A dashboard that is opened late shows what one that was open all the time has seen."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from dashboard.parts import Desk, Parts
from dashboard.story import tell
from llmserve.bench.load.workload import Workload
from llmserve.core.events import Event, EventBus, Rejection, StepRecorded
from llmserve.core.knobs import Knobs
from llmserve.dashboard.backfill import EVERY_S, MOST_S, Backfill, EventBuffer
from llmserve.dashboard.batch_tape import KINDS, Cursor, TapeLog
from llmserve.dashboard.panels import COLUMNS
from llmserve.dashboard.recorder import SeriesRecorder

LOAD = Workload(rate=12, duration_s=100, prompt_tokens=(20, 200), max_tokens=(8, 80))
PRIVILEGED = Workload(rate=2, duration_s=100, max_tokens=10, tenant="gold", priority=1, seed=3)


@pytest.fixture(scope="module")
def desk() -> Desk:
    desk = Desk.lay()
    desk.parts.sample_host(1.0)  # a real session's first event, and its beginning
    desk.parts.board.update(["max_num_seqs"], Knobs(max_num_seqs=4))
    changes = {6.1: {"max_num_seqs": 2}, 9.1: {"max_num_seqs": 32}}
    tell(desk, [LOAD, PRIVILEGED], 20, changes=changes)
    return desk


def late(desk: Desk) -> SeriesRecorder:
    parts = desk.parts
    return SeriesRecorder(parts.telemetry, parts.board, parts.bus, parts.clock)


def test_its_figures_are_those_of_each_second_since_the_session_began(desk: Desk) -> None:
    seen_times, seen = desk.recorder.rows(0)[1:]
    _, times, rows = late(desk).rows(0)
    assert list(times) == pytest.approx([1.0 * k for k in range(1, 21)])
    for t, row in zip(times, rows, strict=True):
        then = seen[int(np.argmin(np.abs(seen_times - t)))]
        for column, figure, known in zip(COLUMNS, row, then, strict=True):
            if column in ("memory_used", "memory_own", "utilization"):
                assert np.isnan(figure)  # not kept, so not told
            elif not column.startswith(("itl", "step", "kv")):  # these end with a step, not at t
                close = pytest.approx(known, rel=0.05, abs=1, nan_ok=True)  # one event at t or not
                assert figure == close, (t, column)


def work(tape: TapeLog) -> list[tuple[str, str, int, int]]:
    """Who did what from which step to which."""
    news = tape.news(Cursor(), limit=None)
    names = {row[0]: str(row[1]) for row in news.rows}
    found = [
        (names[number], KINDS[kind], first, last)
        for number, first, last, kind, _, _ in struct.iter_unpack("<3IHHI", news.segments)
    ]
    return sorted(part for part in found if part[1] in ("prefill", "decode"))


def test_its_tape_and_table_are_the_same(desk: Desk) -> None:
    opened = late(desk)
    assert work(opened.tape) == work(desk.recorder.tape)
    ours, theirs = (
        {row[1]: row[2:] for row in recorder.tape.news(Cursor(), limit=None).rows}
        for recorder in (opened, desk.recorder)
    )
    assert ours.keys() == theirs.keys()
    for name, row in ours.items():
        assert row == pytest.approx(theirs[name], abs=1e-3), name


def test_a_request_that_the_log_has_let_go_is_not_shown_as_running_for_ever() -> None:
    parts = Parts()
    parts.telemetry.requests.capacity = 2
    for _ in range(5):
        parts.play(1.0, ttft_s=0.1)
    tape = TapeLog()
    list(Backfill(parts.telemetry, parts.clock.now()).replay([tape], tape.lose))
    news = tape.news(Cursor(), limit=None)
    ended = {row[1]: (row[8] is not None, row[9]) for row in news.rows}
    assert ended == {
        **dict.fromkeys(("r1", "r2", "r3"), (True, None)),
        **dict.fromkeys(("r4", "r5"), (True, "length")),
    }
    ends = {name: max(last for n, _, _, last in work(tape) if n == name) for name in ended}
    assert ends == {f"r{i + 1}": 10 * i + 9 for i in range(5)}


def test_its_marks_tell_the_changes_made_before_it_was_opened(desk: Desk) -> None:
    (first, second), expected = (late(desk).marks(0)[1], desk.recorder.marks(0)[1])
    assert (first.changed, second.changed) == tuple(mark.changed for mark in expected)
    assert first.satisfied.keys() == {"max_num_seqs"}
    assert second.t - first.t == pytest.approx(3.0, abs=0.3)


def test_it_goes_on_with_who_waits_and_runs_now() -> None:
    desk = Desk.lay()
    asked = Knobs(max_num_seqs=1, max_active=1)
    desk.parts.board.update(["max_num_seqs", "max_active"], asked)
    tell(desk, [LOAD], 2)
    opened = late(desk)
    figures = opened._flow.figures(desk.parts.clock.now(), 5.0, 1.0)
    assert figures == desk.recorder._flow.figures(desk.parts.clock.now(), 5.0, 1.0)


def test_of_a_long_session_it_shows_the_last_ten_minutes() -> None:
    desk = Desk.lay()
    for _ in range(80):
        desk.parts.play(10.0, ttft_s=0.1)
    _, times, _ = late(desk).rows(0)
    assert len(times) == MOST_S / EVERY_S
    assert times[-1] - times[0] == MOST_S - EVERY_S


def test_an_hour_old_session_without_requests_and_a_new_one_have_no_past_to_tell() -> None:
    parts = Parts()
    past = Backfill(parts.telemetry, parts.clock.now())
    assert list(past.replay([])) == []
    assert past.began == parts.clock.now()


def test_what_is_published_while_it_opens_is_told_once_and_in_order() -> None:
    parts, bus, told = Parts(), EventBus(), list[Event]()
    parts.bus.attach(bus.publish)
    gate = EventBuffer(bus, [told.append])
    parts.play(1.0, ttft_s=0.1)
    refused = Rejection(t=1, request_id="x", tenant="t", priority=0, reason="rate_limit")
    parts.bus.publish(refused)
    past = Backfill(parts.telemetry, parts.clock.now())  # has read it all already
    parts.play(1.0, ttft_s=0.1)
    assert told == []
    gate.open(past.known)
    steps = [event.record.index for event in told if isinstance(event, StepRecorded)]
    assert steps == list(range(10, 20))
    assert refused not in told
    bus.publish(refused)
    gate(refused)  # one on its way while it was opened
    assert told[-2:] == [refused, refused]
    assert bus._folds == (told.append,)
