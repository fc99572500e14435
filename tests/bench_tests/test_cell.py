"""The bench as a cell calls it: a real thread, a real clock, a real interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from llmserve.bench.cell import bench
from llmserve.clock import MonotonicClock
from llmserve.engines.simulator import SimulatorEngine
from llmserve.events import Event, EventBus, Finished, FirstToken
from llmserve.knobs import KnobBoard
from llmserve.observe import Telemetry
from llmserve.runtime import Runtime
from llmserve.service import Service, publish_step

Serving = tuple[Runtime, Service, Telemetry]


@pytest.fixture
def serving() -> Iterator[Serving]:
    """A fast simulator on a loop thread of its own."""
    clock, bus = MonotonicClock(), EventBus()
    telemetry, runtime = Telemetry(bus, clock), Runtime()
    engine = SimulatorEngine(
        sink=partial(publish_step, bus), clock=clock, prefill_ms=1, decode_ms=1
    )
    service = Service(engine, KnobBoard(), bus, clock)
    runtime.call(service.start())
    try:
        yield runtime, service, telemetry
    finally:
        runtime.call(service.stop())
        runtime.close()


def test_a_cell_gets_the_report_and_leaves_no_thread_behind(serving: Serving) -> None:
    threads = set(threading.enumerate())
    report = bench(*serving, concurrency=4, requests=12, prompt_tokens=10, max_tokens=3)
    assert (report.n, report.generated_tokens) == (12, 36)
    assert set(threading.enumerate()) == threads, "tqdm's monitor is not started"


def test_an_interrupted_cell_keeps_what_was_measured_and_serving_goes_on(serving: Serving) -> None:
    _, service, telemetry = serving
    main = threading.get_ident()
    ended: list[Event] = []

    def interrupt_after_five(event: Event) -> None:
        if isinstance(event, Finished):
            ended.append(event)
            if len(ended) == 5:
                signal.pthread_kill(main, signal.SIGINT)

    service.bus.attach(interrupt_after_five)
    report = bench(*serving, concurrency=2, requests=100_000, prompt_tokens=10, max_tokens=3)
    assert report.interrupted
    assert 5 <= report.n < 100_000
    again = bench(*serving, concurrency=1, requests=1, prompt_tokens=10, max_tokens=3)
    assert again.n == 1
    assert telemetry.snapshot().running == 0


def test_a_wrong_option_is_refused_before_anything_is_sent(serving: Serving) -> None:
    heard: list[Event] = []
    serving[1].bus.attach(heard.append)
    with pytest.raises(ValueError, match="not both"):
        bench(*serving, rate=1, concurrency=1)
    with pytest.raises(TypeError, match="speed"):
        bench(*serving, speed=1)
    assert not [event for event in heard if isinstance(event, FirstToken)]
