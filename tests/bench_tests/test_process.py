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
from llmserve.bench.process import Address, suits
from llmserve.bench.workload import Workload
from llmserve.engines import EngineError
from llmserve.events import Event, Finished
from llmserve.session import Session

ONE: dict[str, Any] = {"repeats": 1, "progress": False, "prompt_tokens": 12, "max_tokens": 3}


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with llmserve.serve(engine="simulator", prefill_ms=2, decode_ms=2) as one:
        yield one


def children() -> set[int]:
    found = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "llmserve.bench.process" in child.cmdline():
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
        concurrency=2, requests=50_000, own_process=True, warmup=False, **ONE
    )
    session.bus.detach(interrupt)
    assert result.interrupted
    assert 5 <= result.n < 50_000
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


def test_a_load_that_must_stay_here_is_refused_in_words(session: Session) -> None:
    with pytest.raises(ValueError, match="its chats answer to replies"):
        session.bench(concurrency=1, requests=1, turns=2, own_process=True, **ONE)
