"""Interrupt, exceptions, restart and shutdown, in a real kernel with a real signal."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.kernels import Kernel, gone, kernel

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(400)]

OTHER_CLIENT = """
import threading, openai
pieces = []
def follow():
    client = openai.OpenAI(base_url=session.url, api_key=session.api_key, max_retries=0)
    stream = client.chat.completions.create(
        model=session.info.model_id, max_tokens=600, temperature=0, stream=True,
        messages=[{"role": "user", "content": "the other client"}],
        stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
    )
    with client, stream:
        for event in stream:
            pieces.append(event)
other = threading.Thread(target=follow)
other.start()
import time
while len(pieces) < 3:
    time.sleep(0.01)
"""
ITS_RESULT = """
other.join(90)
text = "".join(e.choices[0].delta.content or "" for e in pieces if e.choices)
alone = session.generate("the other client", max_tokens=600, temperature=0, ignore_eos=True)
print("whole" if text == alone else f"differs: {text!r}")
print("tokens", pieces[-1].usage.completion_tokens, pieces[-2].choices[0].finish_reason)
"""
TELL_ONCE_IT_RUNS = """
import threading, time
def tell():
    while not session.stats().running:
        time.sleep(0.001)
    print("go", flush=True)
told = threading.Thread(target=tell)
"""

SIMULATOR = "simulator prefill_ms=2 decode_ms=4"
TORCH = "torch dtype=float32"  # where greedy text is the same in every company
both_engines = pytest.mark.parametrize("shared", [SIMULATOR, TORCH], indirect=True)
on_simulator = pytest.mark.parametrize("shared", [SIMULATOR], indirect=True)
on_torch = pytest.mark.parametrize("served", [TORCH], indirect=True)


@contextmanager
def serving_kernel(engine: str) -> Iterator[Kernel]:
    with kernel() as one:
        one.ok("%load_ext llmserve")
        one.ok(f"%llmserve start --engine {engine}", timeout=120)
        yield one


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    """For tests that leave serving as it was, and assert so."""
    with serving_kernel(request.param) as one:
        yield one


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    with serving_kernel(getattr(request, "param", SIMULATOR)) as one:
        yield one


def aborted(one: Kernel) -> int:
    """How many requests of this session ended so."""
    return int(one.ok("print((session.requests().finish_reason == 'abort').sum())").stdout)


@both_engines
def test_interrupt_ends_that_cells_reply_and_nothing_else(shared: Kernel) -> None:
    before = aborted(shared)
    shared.ok(OTHER_CLIENT)
    cell = shared.start("%%llmserve --max-tokens 1900 --ignore-eos\nA long story.")
    shared.wait_for_update(cell)  # its first words are there
    shared.interrupt()
    ended = shared.finish(cell)
    assert ended.status == "error"
    assert "everything else goes on" in ended.error
    assert "Traceback" not in ended.error
    result = shared.ok(ITS_RESULT).stdout
    assert "whole" in result
    assert "tokens 600 length" in result
    assert aborted(shared) > before


@on_simulator
def test_interrupt_of_code_that_generates_leaves_serving_as_it_was(shared: Kernel) -> None:
    shared.ok(TELL_ONCE_IT_RUNS)
    cell = shared.start("told.start(); session.generate('x', max_tokens=8000)")
    shared.wait_for_output(cell, "go")
    shared.interrupt()
    assert shared.finish(cell).raised == "KeyboardInterrupt"
    assert shared.ok("len(session.generate('x', max_tokens=3).split())").text.strip() == "3"


@both_engines
def test_interrupt_of_a_cell_that_computes_leaves_serving_as_it_was(shared: Kernel) -> None:
    shared.ok(OTHER_CLIENT)
    cell = shared.start("def turn():\n print('go', flush=True)\n while True: pass\nturn()")
    shared.wait_for_output(cell, "go")
    shared.interrupt()
    assert shared.finish(cell).raised == "KeyboardInterrupt"
    assert "whole" in shared.ok(ITS_RESULT).stdout


@on_simulator
def test_an_exception_in_a_cell_leaves_serving_as_it_was(shared: Kernel) -> None:
    shared.ok(OTHER_CLIENT)
    assert "ZeroDivisionError" in shared.run("1 / 0").error
    assert "whole" in shared.ok(ITS_RESULT).stdout


@on_simulator
def test_tab_completes_in_the_kernel(shared: Kernel) -> None:
    assert shared.complete("%llmserve sta") == ["start", "status"]
    assert shared.complete("%llmserve set max_num_s") == ["max_num_seqs="]


def test_the_key_is_in_no_output(served: Kernel) -> None:
    key = served.ok("print(session.api_key)").stdout.strip()
    for line in ("start", "status", "url", "requests", "stop"):
        cell = served.ok(f"%llmserve {line}")
        assert not re.search(re.escape(key), str(cell))


def test_asyncio_run_in_a_cell_works_while_requests_flow(served: Kernel) -> None:
    served.ok(OTHER_CLIENT)
    cell = served.ok(
        "import asyncio, llmserve\n"
        "llmserve.allow_nested(); llmserve.allow_nested()\n"
        "async def several():\n"
        "    replies = (session.agenerate(f'{i}', max_tokens=4) for i in range(8))\n"
        "    return await asyncio.gather(*replies)\n"
        "print(sorted(len(text.split()) for text in asyncio.run(several())))"
    )
    assert cell.stdout.strip() == str([4] * 8)
    assert "whole" in served.ok(ITS_RESULT).stdout
    served.ok("%llmserve ask --max-tokens 3 hello")
    served.ok("%llmserve stop")
    served.ok("%llmserve start --engine simulator")
    served.ok("%llmserve ask --max-tokens 3 hello")


def test_interrupting_the_start_leaves_nothing_behind() -> None:
    with kernel() as one:
        one.ok("%load_ext llmserve")
        before = one.family()
        cell = one.start("%llmserve start --engine torch")
        one.wait_for_output(cell, "Starting")
        one.interrupt()
        ended = one.finish(cell)
        assert "nothing was started" in ended.error
        assert not gone(one.family() - before)
        assert "Nothing is running" in one.ok("%llmserve status").text
        one.ok("%llmserve start --engine torch", timeout=120)
        assert one.ok("len(session.generate('x', max_tokens=3, ignore_eos=True).outcome.token_ids)")


@on_torch
def test_a_killed_kernel_leaves_no_process(served: Kernel) -> None:
    served.ok(OTHER_CLIENT)
    before = served.family()
    assert len(before) > 1  # the engine's process is among them
    served.manager.signal_kernel(signal.SIGKILL)
    assert not gone(before)


@on_torch
def test_restart_leaves_no_process_and_the_new_kernel_starts_afresh(served: Kernel) -> None:
    before = served.family()
    served.restart()
    assert not gone(before - {served.pid})
    served.ok("%load_ext llmserve")
    assert "Nothing is running" in served.ok("%llmserve status").text
    served.ok("%llmserve start --engine simulator")


@on_torch
def test_shutdown_while_requests_flow_leaves_no_process(served: Kernel) -> None:
    served.ok(OTHER_CLIENT.replace("Thread(", "Thread(daemon=True, "))
    before = served.family()
    served.manager.shutdown_kernel()
    assert not gone(before)
