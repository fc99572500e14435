"""The driver as a process of its own, against a real endpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

import llmserve
from llmserve.bench.load.traces import Replay
from llmserve.bench.load.workload import Arrival, Workload
from llmserve.bench.run.process import Address, asks_for_process, suits
from llmserve.core.events import Event, Finished
from llmserve.engines.base import EngineError
from llmserve.entrypoints.session.session import Session

ONE: dict[str, Any] = {"repeats": 1, "progress": False, "prompt_tokens": 12, "max_tokens": 3}


def test_an_address_shows_no_key() -> None:
    assert "sk-secret" not in repr(Address("http://127.0.0.1:1/v1", "sk-secret"))


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with llmserve.serve(engine="simulator", prefill_ms=2, decode_ms=2) as one:
        yield one


def children() -> set[int]:
    found = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "llmserve.bench.run.process" in child.cmdline():
                found.add(child.pid)
    return found


def test_it_sends_the_very_prompts_and_measures_as_a_client_does(session: Session) -> None:
    result = session.bench(rate=40, requests=20, own_process=True, **ONE)
    (run,) = result.runs
    assert (run.sent, run.n, run.errors) == (20, 20, {})
    assert (run.prompt_tokens, run.generated_tokens) == (240, 60), "exact in tokens"
    assert run.ttft.p50 is not None
    assert run.ttft.p50 > 0.002, "not before the prefill step is over"
    assert "sent over HTTP from a process of its own" in run.workload
    assert run.seq_fill is not None, "what the server alone can see is in it too"
    assert run.queue.n == 20
    assert not children()


def test_a_closed_loop_runs_there_too(session: Session) -> None:
    result = session.bench(concurrency=3, requests=9, own_process=True, **ONE)
    assert (result.n, result.errors) == (9, {})


def test_an_interrupt_of_the_cell_keeps_what_was_measured_and_leaves_no_child(
    session: Session,
) -> None:
    main, ended = threading.get_ident(), 0

    def interrupt(event: Event) -> None:
        nonlocal ended
        if isinstance(event, Finished):
            ended += 1
            if ended == 10:
                signal.pthread_kill(main, signal.SIGINT)

    session.bus.attach(interrupt)
    result = session.bench(
        concurrency=2, requests=5000, own_process=True, warmup=False, **ONE
    )
    session.bus.detach(interrupt)
    assert result.interrupted
    assert 5 <= result.n < 5000
    assert not children()


def test_a_child_that_dies_is_told_in_words_and_serving_goes_on(session: Session) -> None:
    def kill(event: Event) -> None:
        if isinstance(event, Finished):
            for pid in children():
                os.kill(pid, signal.SIGKILL)

    session.bus.attach(kill)
    with pytest.raises(EngineError, match="the driver's own process failed"):
        session.bench(concurrency=1, requests=5000, own_process=True, warmup=False, **ONE)
    session.bus.detach(kill)
    assert session.bench(concurrency=1, requests=1, warmup=False, **ONE).n == 1


def test_an_address_where_nobody_answers_is_an_error_of_every_request(session: Session) -> None:
    nowhere = Address("http://127.0.0.1:9/v1", "none")
    result = session.bench(
        concurrency=1, requests=2, own_process=True, address=nowhere, warmup=False, **ONE
    )
    assert (result.n, result.errors) == (0, {"error": 2})


def test_a_load_suits_where_it_can_be_made_ahead() -> None:
    assert suits(Workload(rate=60, requests=5)) is None
    assert "no end but time" in (suits(Workload(concurrency=1, duration_s=5)) or "")
    assert "chats" in (suits(Workload(rate=60, requests=5, turns=3)) or "")


@pytest.mark.parametrize(
    ("load", "cores", "asked"),
    [
        (Workload(rate=100, requests=9), 4, True),
        (Workload(rate=1, rate_to=100, process="ramp", requests=9), 4, True),
        (Workload(rate=99, requests=9), 4, False),
        (Workload(rate=1000, requests=9), 3, False),
        (Workload(rate=1000, requests=9, turns=2), 4, False),
        (Workload(concurrency=1000), 64, False),
    ],
)
def test_a_fast_open_loop_asks_for_a_process_where_there_are_cores(
    load: Workload, cores: int, asked: bool
) -> None:
    assert asks_for_process(load, cores) is asked


def test_a_replay_asks_by_its_fullest_second() -> None:
    times = [*(i / 100 for i in range(100)), 50.0]
    recorded = tuple(Arrival(at_s, 8, 8, 0) for at_s in times)
    load = Replay(source="x", recorded=recorded)
    assert asks_for_process(load, 4)
    assert not asks_for_process(Replay(source="x", recorded=recorded[1:]), 4)


def test_nobody_need_ask_for_the_process_and_anybody_may_refuse_it(session: Session) -> None:
    load: dict[str, Any] = {"rate": 200, "requests": 20, "warmup": False}
    for cores, own, expected in ((4, None, True), (2, None, False), (4, False, False)):
        (run,) = session.bench(**load, **ONE, cores=cores, own_process=own).runs
        assert ("from a process of its own" in run.workload) is expected
        assert run.n == 20


def test_a_load_that_must_stay_here_is_refused_in_words(session: Session) -> None:
    with pytest.raises(ValueError, match="its chats answer to replies"):
        session.bench(concurrency=1, requests=1, turns=2, own_process=True, **ONE)
