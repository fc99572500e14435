"""What a cell that computes does to serving: delivery keeps its share, and nothing is lost.

Every measurement is a fixed number of blocks, kind by kind in turns, and all of them are judged.
A computing cell takes two things: a core, which any program would take, and Python's lock. So the
block beside which a cell computes is compared with one beside which another process does.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from support.clients import Crowd
from support.kernels import Kernel, kernel

pytestmark = [pytest.mark.kernel, pytest.mark.serial, pytest.mark.timeout(400)]

STREAMS = 32
ROUNDS = 7
BLOCK_S = 0.7
SIMULATOR = "simulator decode_ms=3 prefill_ms=1"
SLEEP = "time.sleep(0.01)"
LOOP = "for i in range(1000): i * i"
SETUP = """
import json, sys, time
async def cpu():
    return time.thread_time()
def serving_cpu():
    return session.runtime.call(cpu())
print(json.dumps([session.url, session.api_key, session.info.model_id]))
"""
BLOCK = """
print("begun", flush=True)
cell, serving, end = time.thread_time(), serving_cpu(), time.monotonic() + {s}
while time.monotonic() < end:
    {work}
cell = time.thread_time() - cell
print("over", flush=True)
print(json.dumps([cell, serving_cpu() - serving]))
"""
C_CALL = """
import time
end = time.monotonic() + {s}
while time.monotonic() < end:
    sum(range(2_000_000))
"""
ASIDE = """
import threading
busy = []
t = threading.Thread(target=lambda: busy.extend(asyncio.run(everyone())))
t.start()
"""


@pytest.fixture
def served() -> Iterator[Kernel]:
    with kernel() as one:
        one.ok("%load_ext llmserve")
        yield one


@contextmanager
def crowd(served: Kernel) -> Iterator[Crowd]:
    """Clients that are all being served, until the block is left."""
    url, key, model = json.loads(served.ok(SETUP).stdout)
    with Crowd(url, key, model, STREAMS) as clients:
        assert clients.begun.wait(90)
        yield clients


@dataclass(frozen=True)
class Block:
    rate: float
    """Characters delivered a second."""
    share: float
    """The serving thread's part of the CPU time that it and the cell had together."""


def block(served: Kernel, clients: Crowd, work: str = LOOP) -> Block:
    """What is delivered while a cell works."""
    started = served.start(BLOCK.format(s=BLOCK_S, work=work))
    served.wait_for_output(started, "begun")
    began, before = time.monotonic(), clients.characters
    served.wait_for_output(started, "over")
    rate = (clients.characters - before) / (time.monotonic() - began)
    ended = served.finish(started)
    assert ended.status == "ok", ended.error
    cell, serving = json.loads(ended.stdout)
    return Block(rate, serving / (serving + cell))


@contextmanager
def another_process_computes() -> Iterator[None]:
    command = [sys.executable, "-c", f"print(flush=True)\nwhile True:\n    {LOOP}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


def median_ratio(ones: list[Block], others: list[Block]) -> float:
    """Of the rates, round by round."""
    return statistics.median(a.rate / b.rate for a, b in zip(ones, others, strict=True))


@pytest.mark.parametrize("engine", ["torch", SIMULATOR])
def test_a_python_loop_cell_leaves_half_the_throughput_of_32_streams(
    served: Kernel, engine: str
) -> None:
    """Or, where serving alone fills a core, the half of Python's lock that is its fair share."""
    served.ok(f"%llmserve start --engine {engine}", timeout=120)
    beside, under = list[Block](), list[Block]()
    with crowd(served) as clients:
        for _ in range(ROUNDS):
            with another_process_computes():
                beside.append(block(served, clients, work=SLEEP))
            under.append(block(served, clients))
    left = median_ratio(under, beside)
    share = statistics.median(one.share for one in under)
    assert left >= 0.5 or share >= 0.4, (left, share, beside, under)


def test_a_cell_in_one_c_call_delays_delivery_and_loses_no_token(served: Kernel) -> None:
    served.ok("%llmserve start --engine simulator decode_ms=5 prefill_ms=1")
    served.ok(CLIENTS)
    served.ok("quiet = await everyone()")
    served.ok(ASIDE)
    served.ok(C_CALL.format(s=4), timeout=120)
    told = served.ok("t.join(90); print(len(busy), busy == quiet, {r[1] for r in busy})", 120)
    assert told.stdout.strip() == "32 True {(200, 'length')}"


CLIENTS = """
import asyncio, openai
async def one(client, i):
    stream = await client.chat.completions.create(
        model=session.info.model_id, max_tokens=200, seed=i, stream=True,
        messages=[{"role": "user", "content": f"client {i}"}],
        stream_options={"include_usage": True})
    events = [event async for event in stream]
    text = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
    ends = [e.choices[0].finish_reason for e in events if e.choices]
    return text, (events[-1].usage.completion_tokens, ends[-1])
async def everyone():
    async with openai.AsyncOpenAI(base_url=session.url, api_key=session.api_key) as client:
        return await asyncio.gather(*(one(client, i) for i in range(32)))
"""
