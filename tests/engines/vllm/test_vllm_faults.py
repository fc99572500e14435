"""What may go wrong with a live vLLM, made to go wrong: in a real kernel, in real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import llmserve
from llmserve.engines.base import EngineError
from llmserve.engines.vllm.parent_watch import FOLDER_PREFIX
from llmserve.engines.vllm.process_files import sweep
from llmserve.entrypoints.session.session import Session
from llmserve.models import bundled_path
from support.kernels import Kernel, gone, kernel
from support.small_vllm import OPTIONS
from support.speculating import DRAFT, check, said

TESTS = Path(__file__).parents[2]
LOAD = """
from llmserve.core.types import Request, SamplingParams
sampling = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)
async def ask(name):
    requests = [
        Request(id=f"{name}-{n}", prompt_ids=(10 + n, 20, 30), sampling=sampling,
                arrival=session.clock.now())
        for n in range(8)
    ]
    streams = [session.service.submit(request) for request in requests]
    return [(await stream.collect()).token_ids for stream in streams]
"""
STREAM = """
while True:
    for piece in session.stream('go', max_tokens=400, ignore_eos=True):
        print('>')
"""
DRAFTED = DRAFT | {"model": OPTIONS["model"] or str(bundled_path())}
GUESS = """
import json
from support.speculating import guessed
print(json.dumps(guessed(session)))
"""


@contextmanager
def serving(**options: object) -> Iterator[Kernel]:
    """A kernel with a session."""
    with kernel(TESTS) as made:
        given = OPTIONS | options
        made.ok(f"import llmserve; session = llmserve.serve(engine='vllm', **{given!r})", 300)
        yield made


@pytest.fixture
def live() -> Iterator[Kernel]:
    with serving() as made:
        yield made


def folders_of(pid: int) -> list[Path]:
    """What a kernel's engines have in the temporary folder."""
    found = Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*/owner")
    return [owner.parent for owner in found if owner.read_text().startswith(f"{pid}/")]


def test_interrupts_lose_no_token_and_a_restart_leaves_no_process(live: Kernel) -> None:
    live.ok(LOAD)
    live.ok("calm = session.runtime.call(ask('calm'))")
    live.ok("pending = session.runtime.submit(ask('pressed'))")
    for _ in range(5):
        cell = live.start(STREAM)
        live.wait_for_output(cell, ">")
        live.interrupt()
        assert live.finish(cell).raised == "KeyboardInterrupt"
    told = live.ok("print(pending.result(120) == calm, {len(ids) for ids in calm})", 150)
    assert told.stdout == "True {400}\n"
    family, pid = live.family() - {live.pid}, live.pid
    live.restart()
    assert gone(family) == set()
    sweep()  # as the next start of an engine does: the kernel may be killed on its way out
    assert folders_of(pid) == []


def test_children_of_a_killed_kernel_are_gone_within_ten_seconds(live: Kernel) -> None:
    family = live.family()
    assert len(family) >= 3
    assert len(folders_of(live.pid)) == 1
    os.kill(live.pid, signal.SIGKILL)
    assert gone(family, timeout=10) == set()
    assert folders_of(live.pid) == []


def test_a_model_that_drafts_changes_no_word_and_a_shutdown_leaves_no_process(
    shared: Session,
) -> None:
    with serving(speculative_config=DRAFTED, max_active=64) as live:
        found = json.loads(live.ok(GUESS, timeout=120).stdout)
        check(found, said(shared, "plain"), DRAFT)
        family, pid = live.family(), live.pid
        live.manager.shutdown_kernel()
        assert gone(family) == set()
    sweep()
    assert folders_of(pid) == []


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_a_start_that_fails_shows_the_engines_own_last_error(shared: Session) -> None:
    options = OPTIONS | {"kv_cache_memory_bytes": 4096}
    before = children()
    with pytest.raises(EngineError, match="No available memory for the cache blocks"):
        llmserve.serve(engine="vllm", **options)
    assert children() <= before


def test_a_model_that_is_not_there_is_said_in_the_cell() -> None:
    with pytest.raises(EngineError, match="/no/such/model"):
        llmserve.serve(engine="vllm", **OPTIONS | {"model": "/no/such/model"})


def test_a_model_without_weights_is_told_by_the_worker_that_looked_for_them(
    shared: Session, tmp_path: Path
) -> None:
    for file in Path(bundled_path()).iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    with pytest.raises(EngineError, match="Cannot find any model weights") as told:
        llmserve.serve(engine="vllm", **OPTIONS | {"model": str(tmp_path)})
    assert "Engine core initialization failed" not in str(told.value)
    assert len(str(told.value).splitlines()) < 25


def test_an_option_that_vllm_has_not_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="no option 'max_modl_len'; did you mean max_model_len"):
        llmserve.serve(engine="vllm", **OPTIONS | {"max_modl_len": 5})
