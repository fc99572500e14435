"""What may go wrong with a live vLLM, made to go wrong: in a real kernel, in real processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import llmserve
from llmserve.core import Outcome, Request, SamplingParams
from llmserve.engines import EngineError
from llmserve.engines.vllm.launch import sweep
from llmserve.engines.vllm.parent_watch import FOLDER_PREFIX
from llmserve.models import bundled_path
from llmserve.session import Session
from support.crowd import Watcher, collect_all, crowd
from support.kernels import Kernel, gone, kernel
from support.small_vllm import OPTIONS

START = f"""
import llmserve
session = llmserve.serve(engine="vllm", **{OPTIONS!r})
"""
LOAD = """
from llmserve.core import Request, SamplingParams
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
STREAM = "for piece in session.stream('go', max_tokens=400, ignore_eos=True): print('>')"
TINY_KV = 10 * 128 * 3072
"""Ten blocks of the model's KV, 128 tokens each."""


@pytest.fixture
def live() -> Iterator[Kernel]:
    """A kernel that serves."""
    with kernel() as made:
        made.ok(START, timeout=300)
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
        assert live.finish(cell).error.count("KeyboardInterrupt")
    assert "True" in live.ok("pending.result(120) == calm, [len(ids) for ids in calm]").text
    assert "400" in live.ok("[len(ids) for ids in calm]").text
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


def test_shutting_the_kernel_down_leaves_no_process(live: Kernel) -> None:
    family, pid = live.family(), live.pid
    live.manager.shutdown_kernel()
    assert gone(family) == set()
    sweep()
    assert folders_of(pid) == []


@pytest.fixture(scope="module")
def cramped(few_threads: None) -> Iterator[Session]:
    """With KV room for ten blocks."""
    options = OPTIONS | {"kv_cache_memory_bytes": TINY_KV}
    with llmserve.serve(engine="vllm", max_num_seqs=16, **options) as running:
        yield running


def test_out_of_kv_memory_preempts_and_loses_nothing(cramped: Session, shared: Session) -> None:
    def ask(session: Session) -> list[Request]:
        sampling = SamplingParams(max_tokens=250, temperature=0.0, ignore_eos=True)
        return [
            Request(
                id=f"kv-{n}", prompt_ids=tuple(range(10 + n, 110 + n)), sampling=sampling,
                arrival=session.clock.now(),
            )
            for n in range(8)
        ]  # fmt: skip

    roomy = shared.runtime.call(collect_all(shared, ask(shared)))
    with Watcher(cramped) as watcher:
        outcomes = cramped.runtime.call(collect_all(cramped, ask(cramped)))
    assert sum(len(step.preempted) for step in watcher.steps) > 0
    assert [one.token_ids for one in outcomes] == [one.token_ids for one in roomy]
    assert int(cramped.requests()["preemptions"].max()) > 0
    assert cramped.telemetry.steps.missing == 0


def test_a_killed_engine_ends_what_ran_and_comes_back_for_what_waits(cramped: Session) -> None:
    """Six are in the engine when it dies (max_num_seqs + 2), the others wait in front."""
    cramped.set(max_num_seqs=4)
    requests = crowd(cramped, 12, tag="killed")
    dead = psutil.Process(cramped.info.pids[0])

    async def one(request: Request) -> Outcome | EngineError:
        try:
            return await cramped.service.submit(request).collect()
        except EngineError as error:
            return error

    async def kill() -> list[Any]:
        with Watcher(cramped) as watcher:
            tasks = [asyncio.create_task(one(request)) for request in requests]
            await watcher.when(lambda step: step.decode_tokens >= 4)
            dead.kill()
            return list(await asyncio.gather(*tasks))

    ends = cramped.runtime.call(kill())
    failed = [end for end in ends if isinstance(end, EngineError)]
    served = [end for end in ends if isinstance(end, Outcome)]
    assert len(failed) == 6
    assert all("vLLM engine process died" in str(error) for error in failed)
    assert [one.finish_reason for one in served] == ["length"] * 6
    assert cramped.info.pids[0] != dead.pid
    assert gone({dead.pid}) == set()
    assert cramped.knobs.max_num_seqs == 4


def ask_over_http(session: Session, count: int) -> list[Future[int]]:
    """Statuses to come; returns once the requests stand at the gate."""
    pool = ThreadPoolExecutor(count)

    def ask() -> int:
        headers = {"Authorization": f"Bearer {session.api_key}"}
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
        url = f"{session.url}/chat/completions"
        return httpx.post(url, json=body, headers=headers, timeout=300).status_code

    asked = [pool.submit(ask) for _ in range(count)]
    pool.shutdown(wait=False)
    until = time.monotonic() + 60
    while session.service.at_the_gate < count:
        assert time.monotonic() < until, "the requests were answered, or never came"
        time.sleep(0.01)
    return asked


def test_requests_over_http_wait_while_a_dead_engine_is_brought_back(cramped: Session) -> None:
    """It died while nobody looked: the first request finds it dead."""
    dead = psutil.Process(cramped.info.pids[0])
    dead.kill()
    engine: Any = cramped.service.engine
    until = time.monotonic() + 60
    while not engine._llm.errored:
        assert time.monotonic() < until, "vLLM's client never noticed"
        time.sleep(0.05)
    asked = ask_over_http(cramped, 3)
    assert [one.result(300) for one in asked] == [200] * 3
    assert cramped.info.pids[0] != dead.pid


def test_asleep_it_holds_no_process_and_serves_who_waited_once_awake(cramped: Session) -> None:
    family = set(cramped.info.pids)
    assert "stopped instead" in cramped.sleep(1)
    assert gone(family) == set()
    asked = ask_over_http(cramped, 2)
    cramped.set(max_num_seqs=3)
    cramped.wake()
    assert [one.result(60) for one in asked] == [200] * 2
    assert int(cramped.tape().iloc[-1].max_num_seqs) == 3


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_a_start_that_fails_shows_the_engines_own_last_error(shared: Session) -> None:
    options = OPTIONS | {"kv_cache_memory_bytes": 4096}
    before = children()
    with pytest.raises(EngineError, match="No available memory for the cache blocks"):
        llmserve.serve(engine="vllm", **options)
    assert children() == before


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
