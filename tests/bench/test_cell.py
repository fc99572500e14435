"""The bench as a cell calls it: a real thread, a real clock, a real interrupt."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from llmserve.bench.load.workload import Workload
from llmserve.bench.run.cell import bench, run_job
from llmserve.bench.run.driver import ServiceTarget
from llmserve.bench.run.job import Job, State
from llmserve.bench.run.repeats import Repeats
from llmserve.core.clock import MonotonicClock
from llmserve.core.events import Event, EventBus, Finished, FirstToken
from llmserve.core.knobs import KnobBoard
from llmserve.engines.simulator.engine import SimulatorEngine
from llmserve.observe import Telemetry
from llmserve.serving.publisher import publish_step
from llmserve.serving.runtime import Runtime
from llmserve.serving.service import Service

Serving = tuple[Runtime, Service, EventBus]
ONE: dict[str, Any] = {"repeats": 1, "warmup": False}


@pytest.fixture
def serving() -> Iterator[Serving]:
    """A fast simulator on a loop thread of its own."""
    clock, bus = MonotonicClock(), EventBus()
    runtime = Runtime()
    engine = SimulatorEngine(
        sink=partial(publish_step, bus), clock=clock, prefill_ms=1, decode_ms=1
    )
    service = Service(engine, KnobBoard(), bus, clock)
    runtime.call(service.start())
    try:
        yield runtime, service, bus
    finally:
        runtime.call(service.stop())
        runtime.close()


def test_a_cell_gets_the_report_and_leaves_no_thread_behind(serving: Serving) -> None:
    threads = set(threading.enumerate())
    report = bench(*serving, concurrency=4, requests=12, prompt_tokens=10, max_tokens=3, **ONE)
    assert (report.n, report.generated_tokens) == (12, 36)
    assert not set(threading.enumerate()) - threads, "tqdm's monitor is not started"


def test_an_interrupted_cell_keeps_what_was_measured_and_serving_goes_on(serving: Serving) -> None:
    _, service, bus = serving
    telemetry = Telemetry(bus, service.clock)
    main = threading.get_ident()
    ended: list[Event] = []

    def interrupt_after_five(event: Event) -> None:
        if isinstance(event, Finished):
            ended.append(event)
            if len(ended) == 5:
                signal.pthread_kill(main, signal.SIGINT)

    service.bus.attach(interrupt_after_five)
    report = bench(*serving, concurrency=2, requests=100_000, prompt_tokens=10, max_tokens=3, **ONE)
    assert report.interrupted
    assert 5 <= report.n < 100_000
    assert "interrupted: 0 of 1 runs came to their end" in str(report)
    again = bench(*serving, concurrency=1, requests=1, prompt_tokens=10, max_tokens=3, **ONE)
    assert again.n == 1
    assert telemetry.snapshot().running == 0


class Endless(Job[str]):
    """Runs until it is stopped, and the first who asks how far it is gets an interrupt."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self._over = asyncio.Event()
        self._interrupts = [signal.SIGINT]

    async def run(self) -> str:
        await self._over.wait()
        return self.result()

    def result(self) -> str:
        return "what was measured"

    def stop(self) -> None:
        super().stop()
        self._over.set()

    @property
    def state(self) -> State:
        for number in self._interrupts:
            self._interrupts = []
            signal.raise_signal(number)
        return super().state


def test_an_interrupt_before_anything_is_shown_stops_the_job_too(serving: Serving) -> None:
    job = Endless()
    assert run_job(serving[0], job) == "what was measured"
    assert job.stopped


def test_an_interrupt_while_the_last_figure_is_drawn_loses_nothing(serving: Serving) -> None:
    load = Workload(concurrency=1, requests=1, prompt_tokens=10, max_tokens=3)
    job = Repeats(ServiceTarget(serving[1], serving[2]), load, **ONE)

    interrupts = [signal.SIGINT]

    def drawing() -> None:
        while interrupts and job.state.runs_done:
            signal.raise_signal(interrupts.pop())

    assert run_job(serving[0], job, watch=drawing).n == 1
    assert not interrupts


def test_three_runs_after_a_warm_up_that_does_not_count(serving: Serving) -> None:
    sent: list[Event] = []
    serving[2].attach(sent.append)
    report = bench(*serving, concurrency=2, requests=6, prompt_tokens=10, max_tokens=3)
    assert [run.n for run in report.runs] == [6, 6, 6]
    assert len([event for event in sent if isinstance(event, Finished)]) == 3 * 6 + 2


def test_a_wrong_option_is_refused_before_anything_is_sent(serving: Serving) -> None:
    heard: list[Event] = []
    serving[1].bus.attach(heard.append)
    with pytest.raises(ValueError, match="not both"):
        bench(*serving, rate=1, concurrency=1)
    with pytest.raises(TypeError, match="no field 'colour'; its fields: rate, "):
        bench(*serving, colour=1)
    with pytest.raises(TypeError, match="no field 'rat'; did you mean rate"):
        bench(*serving, rat=1)
    with pytest.raises(TypeError, match="max_num_seqs is a knob"):
        bench(*serving, max_num_seqs=1)
    with pytest.raises(TypeError, match="given already: rate"):
        bench(*serving, Workload(), rate=1)
    with pytest.raises(ValueError, match="repeats"):
        bench(*serving, repeats=0)
    with pytest.raises(ValueError, match="SLO"):
        bench(*serving, slo="speed:1")
    assert not [event for event in heard if isinstance(event, FirstToken)]
