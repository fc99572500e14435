"""A trace replayed gives what was live."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.events import (
    DeviceSampled,
    Event,
    EventBus,
    KnobsChanged,
    KnobsSatisfied,
    WaitReasonChanged,
)
from llmserve.core.knobs import Knobs
from llmserve.observe import LiveStats, PrometheusExporter, RequestLog, StepLog, Telemetry
from llmserve.observe.trace import TraceError, TraceWriter, read_trace, replay
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


def every_kind() -> list[Event]:
    return [
        *one_request(),
        submitted(7, "é\n"),
        refused(8, "é\n", "queue_timeout"),
        WaitReasonChanged(t=9, request_id="b", reason="cap", step=3),
        KnobsChanged(
            t=9, changed={"policy": ("fifo", "priority"), "max_active": (None, 3)}, source="ui",
            step=None, ms=0.1, clamped=("max_active",),
        ),
        KnobsSatisfied(t=10, name="max_num_seqs", step=4),
        step(11, prefill=5, preempted=("a",)),
        DeviceSampled(t=12, kind="host", name="host memory", used_bytes=1, total_bytes=2),
    ]  # fmt: skip


def traffic(seed: int, requests: int = 200) -> list[Event]:
    """Random lives, in the order of time, with times that are no round numbers."""
    rng = random.Random(seed)
    events: list[Event] = []
    for index in range(requests):
        name, t = f"r{index}", rng.uniform(0, 50)
        events.append(submitted(t, name, prompt=rng.randint(1, 99)))
        if rng.random() < 0.1:
            events.append(refused(t + rng.expovariate(1), name, "queue_timeout"))
            continue
        events.append(dispatched(t := t + rng.expovariate(2), name))
        events.append(first(t := t + rng.expovariate(3), name))
        events.append(tokens(t, name))
        for _ in range(rng.randint(0, 20)):
            events.append(tokens(t := t + rng.expovariate(50), name, n=rng.randint(1, 3)))
        events.append(finished(t, name, tokens=rng.randint(1, 60)))
    events += [step(t, index=t, took=rng.random()) for t in range(50)]
    return sorted(events, key=lambda event: event.t)


def written(path: Path, events: list[Event], **options: int) -> TraceWriter:
    writer = TraceWriter(path, model="tiny", engine="torch", knobs=Knobs().as_dict(), **options)
    for event in events:
        writer(event)
    writer.close()
    return writer


def test_every_event_comes_back_as_it_was(tmp_path: Path) -> None:
    written(tmp_path / "t.jsonl", every_kind())
    trace = read_trace(tmp_path / "t.jsonl")
    assert list(trace) == every_kind()
    assert (trace.warning, trace.lost) == (None, 0)
    assert list(trace) == every_kind(), "it may be read again"


def test_the_header_tells_model_knobs_and_the_one_wall_time(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    TraceWriter(path, t=12.5, model="tiny", engine="torch", knobs=Knobs().as_dict()).close()
    header = read_trace(path).header
    assert (header.t, header.model, header.engine) == (12.5, "tiny", "torch")
    assert header.knobs == Knobs().as_dict()
    assert header.wall_time.endswith("+00:00")


@pytest.mark.parametrize("seed", range(3))
def test_the_replayed_figures_equal_the_live_ones(tmp_path: Path, seed: int) -> None:
    bus = EventBus()
    live = Telemetry(bus, VirtualClock())
    writer = TraceWriter(tmp_path / "t.jsonl")
    bus.attach(writer)
    events = traffic(seed)
    for event in events:
        bus.publish(event)
    writer.close()

    stats, log, steps, exporter = LiveStats(), RequestLog(), StepLog(), PrometheusExporter()
    replay(read_trace(tmp_path / "t.jsonl"), stats, log, steps, exporter)
    for now in (None, events[-1].t, 20.0):
        assert stats.snapshot(now) == live.stats.snapshot(now)
    assert stats.snapshot().ttft.n > 50, "there was something to compare"
    assert log.rows() == live.requests.rows()
    assert steps.records() == live.steps.records()
    assert exporter.render() == live.prometheus.render()


def test_a_trace_cut_off_in_its_last_line_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    written(path, one_request())
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]) + lines[-2][:20])  # no closing line, half an event
    trace = read_trace(path)
    assert list(trace) == one_request()[:-1]
    assert trace.warning is not None
    assert "no closing line" in trace.warning
    assert trace.lost == 1


def test_a_damaged_line_in_the_middle_is_passed_over_and_marks_the_figures(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.jsonl"
    written(path, one_request())
    lines = path.read_bytes().splitlines(keepends=True)
    lines[5] = b"\x00\xff nonsense\n"
    path.write_bytes(b"".join(lines))
    stats = LiveStats()
    trace = read_trace(path)
    replay(trace, stats)
    assert stats.snapshot().dropped == 1
    assert trace.warning == "t.jsonl: 1 lines could not be read"


def test_a_slow_disk_drops_and_counts_and_the_replay_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    writer = written(path, every_kind(), capacity=3)
    total = len(every_kind())
    assert writer.dropped > 0
    assert writer.events + writer.dropped == total
    trace, stats = read_trace(path), LiveStats()
    replay(trace, stats)
    assert trace.dropped == writer.dropped
    assert stats.snapshot().dropped == writer.dropped


def test_a_file_that_takes_no_more_ends_the_trace_not_the_session(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = TraceWriter(pipe)
    os.close(reader)  # from here on every write fails, as on a full disk
    for event in every_kind():
        writer(event)
    end = writer.close()
    assert writer.error is not None
    assert (end.events, end.dropped) == (0, len(every_kind()))


@pytest.mark.parametrize("path", ["no/such/folder.jsonl", "/dev/full"])
def test_a_path_that_cannot_be_written_raises_in_the_caller(tmp_path: Path, path: str) -> None:
    with pytest.raises(OSError, match=r"No such file|No space"):
        TraceWriter(tmp_path / path)


@pytest.mark.parametrize("text", ["", "hello\n", '{"type":"Finished","t":1}\n'])
def test_a_file_that_is_no_trace_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError, match="no llmserve trace"):
        read_trace(path)


def test_a_trace_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"type":"TraceHeader","version":99}\n')
    with pytest.raises(TraceError, match="version 99"):
        read_trace(path)


def test_closing_twice_is_safe(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "t.jsonl")
    assert writer.close() == writer.close()


def test_replay_gives_every_event_to_every_fold_in_order() -> None:
    heard: list[list[Event]] = [[], []]
    folds: list[Callable[[Event], None]] = [heard[0].append, heard[1].append]
    replay(every_kind(), *folds)
    assert heard == [every_kind(), every_kind()]
