"""Sleep, wake and restart of whole sessions: real threads, real processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

import llmserve
from llmserve.core.events import Submitted
from llmserve.core.knobs import KnobError
from llmserve.core.types import ParamError
from llmserve.entrypoints.session.session import Session

SIMULATED: dict[str, Any] = {"engine": "simulator", "prefill_ms": 1.0, "decode_ms": 1.0}
TORCH: dict[str, Any] = {"engine": "torch", "threads": 1, "dtype": "float32"}


@pytest.fixture(scope="module")
def shared() -> Iterator[Session]:
    """For tests whose session goes on, with whatever engine process it has then."""
    with llmserve.serve(**TORCH) as session:
        yield session


@contextmanager
def session_on(engine: str, shared: Session) -> Iterator[Session]:
    if engine == "torch":
        yield shared
        return
    with llmserve.serve(**SIMULATED) as session:
        yield session


@pytest.mark.parametrize("engine", ["simulator", "torch"])
def test_asleep_it_holds_no_process_and_awake_it_says_the_same_as_before(
    engine: str, shared: Session
) -> None:
    with session_on(engine, shared) as session:
        before = session.generate("hello", max_tokens=5, temperature=0.0)
        pids = session.service.pids
        assert len(pids) == len(session.info.pids)
        told = session.sleep()
        assert "stopped instead" in told
        mib = re.search(r"; (\d+) MiB of the engine's processes came back$", told)
        assert mib is not None
        assert (int(mib[1]) > 64) == bool(pids), "only a process has memory to give back"
        assert session.service.pids == ()
        assert not any(psutil.pid_exists(pid) for pid in pids)
        session.set(max_num_seqs=3)
        waiting, replies = ask_in_a_thread(session)
        session.wake()
        waiting.join(60)
        assert replies == [str(before)]
        assert session.knobs.max_num_seqs == 3
        assert session.tape().iloc[-1].max_num_seqs == 3


def ask_in_a_thread(session: Session) -> tuple[threading.Thread, list[str]]:
    """Returns once the request is in line."""
    replies: list[str] = []
    here = threading.Event()

    def look(event: object) -> None:
        if isinstance(event, Submitted):
            here.set()

    def ask() -> None:
        replies.append(str(session.generate("hello", max_tokens=5, temperature=0.0)))

    session.bus.attach(look)
    thread = threading.Thread(target=ask)
    thread.start()
    assert here.wait(60)
    session.bus.detach(look)
    return thread, replies


def test_a_restarted_engine_is_another_process_and_serves(shared: Session) -> None:
    before = shared.info.pids
    assert shared.restart(drain_s=0) == "the engine was restarted"
    assert shared.info.pids != before
    assert not psutil.pid_exists(before[0])
    assert shared.generate("hello", max_tokens=2)


def test_an_engine_that_was_killed_while_idle_is_started_anew_for_the_next_request(
    shared: Session,
) -> None:
    killed = psutil.Process(shared.info.pids[0])
    killed.kill()
    until = time.monotonic() + 60
    while not shared.service.engine.dead:
        assert time.monotonic() < until, "the engine does not know of its death"
        time.sleep(0.01)
    assert shared.generate("hello", max_tokens=2)
    assert shared.info.pids[0] != killed.pid


def test_a_session_closes_from_its_sleep() -> None:
    session = llmserve.serve(**TORCH)
    session.sleep(2)
    freed = session.close()
    assert freed.processes == {}
    assert session.closed


def test_wrong_wishes_are_refused_in_the_cell() -> None:
    with llmserve.serve(**SIMULATED) as session:
        with pytest.raises(ParamError, match="level 1 or 2"):
            session.sleep(7)
        with pytest.raises(KnobError, match="leave evict out"):
            session.set(max_num_seqs=4, evict=True)
        assert session.knobs.max_num_seqs == 32
        assert session.generate("hello", max_tokens=2)


def test_a_program_that_ends_without_closing_leaves_nothing_and_complains_of_nothing() -> None:
    """As a kernel does that is restarted: its sessions are closed on its way out."""
    code = """
import logging
logging.basicConfig(level="WARNING")
import llmserve
session = llmserve.serve(engine="torch", threads=1)
print(session.info.pids[0])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=True
    )
    assert not psutil.pid_exists(int(ran.stdout))
    assert ran.stderr == ""


def test_an_engine_that_cannot_pause_says_so() -> None:
    with llmserve.serve(engine="simulator") as session:
        for turn in (session.pause, session.resume):
            with pytest.raises(ParamError, match="simulator engine cannot pause; vllm can"):
                turn()


def test_a_knob_set_too_high_while_it_sleeps_is_clamped_at_once_and_told() -> None:
    with llmserve.serve(**SIMULATED, max_num_seqs_ceiling=8) as session:
        session.sleep()
        applied = session.set(max_num_seqs=99, max_active=3)
        assert [(clamp.name, clamp.asked, clamp.got) for clamp in applied.clamped] == [
            ("max_num_seqs", 99, 8)
        ]
        assert session.knobs.max_num_seqs == 8
        session.wake()
        assert (session.knobs.max_num_seqs, session.knobs.max_active) == (8, 3)
