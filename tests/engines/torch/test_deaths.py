"""Starts that fail, children that die, parents that die: nothing is left, and the cause is told."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from llmserve.core.clock import MonotonicClock
from llmserve.core.types import Chunk, Request, SamplingParams
from llmserve.engines.base import EngineError
from llmserve.engines.torch.engine import TorchEngine
from support.tiny_models import save_sliding


def make(**options: object) -> TorchEngine:
    return TorchEngine(sink=lambda _: None, clock=MonotonicClock(), threads=1, **options)


def children() -> list[int]:
    """This test's: servers that other tests share may be running too."""
    return [child.pid for child in psutil.Process().children() if child.pid not in _earlier]


_earlier: set[int] = set()


@pytest.fixture(autouse=True)
def note_children_of_others() -> None:
    _earlier.clear()
    _earlier.update(child.pid for child in psutil.Process().children())


async def collect(engine: TorchEngine, id: str, max_tokens: int) -> list[Chunk]:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    one = Request(id=id, prompt_ids=(5, 6), sampling=sampling, arrival=0.0)
    chunks: list[Chunk] = []
    await engine.generate(one, chunks.append)
    return chunks


async def start_fails(engine: TorchEngine) -> str:
    with pytest.raises(EngineError) as caught:
        await engine.start()
    assert children() == []
    await engine.stop()
    return str(caught.value)


def test_a_killed_child_is_told_to_all_and_can_be_replaced(llama: Path) -> None:
    async def main() -> None:
        engine = make(model=llama, dtype="float32")
        await engine.start()
        (pid,) = engine.info.pids
        work = [asyncio.create_task(collect(engine, f"r{i}", 400)) for i in range(3)]
        await asyncio.sleep(0)  # they have asked
        os.kill(pid, signal.SIGKILL)
        for end in await asyncio.gather(*work, return_exceptions=True):
            assert isinstance(end, EngineError)
            assert "process died (SIGKILL)" in str(end)
        with pytest.raises(EngineError, match="SIGKILL"):
            await collect(engine, "late", 3)
        assert children() == []  # reaped though nobody has called stop
        await engine.stop()
        await engine.start()
        assert engine.info.pids != (pid,)
        assert len(await collect(engine, "again", 3)) >= 1
        await engine.stop()
        await engine.stop()
        assert children() == []

    asyncio.run(asyncio.wait_for(main(), 110))


def test_stopping_under_load_ends_every_request_and_the_child(llama: Path) -> None:
    async def main() -> None:
        engine = make(model=llama)
        await engine.start()
        work = asyncio.create_task(collect(engine, "r", 500))
        await asyncio.sleep(0)
        await engine.stop()
        with pytest.raises(EngineError, match="stopped"):
            await work
        assert children() == []

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_start_that_is_cancelled_leaves_no_child(llama: Path) -> None:
    async def main() -> None:
        engine = make(model=llama)
        starting = asyncio.create_task(engine.start())
        while not children():  # noqa: ASYNC110  # what is waited for is outside of the loop
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert children() == []

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("what", ["corrupt", "unsupported"])
def test_a_start_that_fails_says_why(llama: Path, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "model"
    if what == "unsupported":
        save_sliding(folder)
        expected = "slides over a window of 64"
    else:
        shutil.copytree(llama, folder)
        (folder / "model.safetensors").write_bytes(b"\xff" * 100)
        expected = "Error while deserializing header"
    message = asyncio.run(start_fails(make(model=folder)))
    assert message.startswith(f"the torch engine did not start with {folder}: ")
    assert expected in message


def test_a_process_that_ends_while_loading_leaves_its_last_words(llama: Path) -> None:
    async def main() -> None:
        engine = make(model=llama)
        engine._environment = lambda: {"PYTHONPATH": "", "PYTHONHOME": "/nowhere"}  # type: ignore[method-assign]  # a Python that cannot start
        message = await start_fails(engine)
        assert "process died (exit status 1); its last lines were:" in message
        assert "encodings" in message

    asyncio.run(main())


def test_a_wrong_model_id_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as on a machine without a network
    message = asyncio.run(start_fails(make(model="nobody/no-such-model")))
    assert "nobody/no-such-model" in message


PARENT = """
    import asyncio, os, sys, time
    from llmserve.core.clock import MonotonicClock
    from llmserve.engines.torch.engine import TorchEngine

    async def main():
        engine = TorchEngine(sink=lambda _: None, clock=MonotonicClock(), model=sys.argv[1])
        if sys.argv[2] == "loaded":
            await engine.start()
        else:
            asyncio.create_task(engine.start())
            while engine._run is None or engine._run.child._process is None:
                await asyncio.sleep(0)
        print(engine._run.child.pid, flush=True)
        if sys.argv[3] == "forked" and os.fork() == 0:
            print(os.getpid(), flush=True)
            time.sleep(120)
            os._exit(0)
        await asyncio.sleep(120)

    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("when", "how"), [("loading", "alone"), ("loaded", "alone"), ("loaded", "forked")]
)
def test_a_killed_parent_leaves_no_child(llama: Path, when: str, how: str) -> None:
    """Even where a process that the parent forked holds its end of the socket open."""
    command = [sys.executable, "-c", textwrap.dedent(PARENT), str(llama), when, how]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        holder = psutil.Process(int(parent.stdout.readline())) if how == "forked" else None
        assert child.is_running()
        parent.kill()
        _gone, alive = psutil.wait_procs([child], timeout=60)
        if holder is not None:
            holder.kill()
        assert alive == []
