"""What a cell that computes does to serving: half the throughput stays, and nothing is lost."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import pytest

from support.clients import Crowd
from support.kernels import Kernel, kernel

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(400)]

STREAMS = 32
BLOCK_S = 1.0
LOOP = """
import time
print("begun", flush=True)
end = time.monotonic() + {s}
while time.monotonic() < end:
    total = 0
    for i in range(1000): total += i
print("over", flush=True)
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


def crowd(served: Kernel) -> Crowd:
    told = served.ok(
        "import json; print(json.dumps([session.url, session.api_key, session.info.model_id]))"
    )
    url, key, model = json.loads(told.stdout)
    return Crowd(url, key, model, STREAMS)


def one_block() -> None:
    time.sleep(BLOCK_S)  # this is what is measured


def rate(clients: Crowd, until: Callable[[], object] = one_block) -> float:
    """Characters delivered a second, over one block or until then."""
    began, before = time.monotonic(), clients.characters
    until()
    return (clients.characters - before) / (time.monotonic() - began)


def shares_left(served: Kernel, clients: Crowd) -> Iterator[float]:
    """Throughput under a computing cell to that of the idle blocks around it, cell by cell."""
    idle = rate(clients)
    while True:
        cell = served.start(LOOP.format(s=BLOCK_S))
        served.wait_for_output(cell, "begun")
        busy = rate(clients, partial(served.wait_for_output, cell, "over"))
        served.finish(cell)
        idle, before = rate(clients), idle
        yield 2 * busy / (idle + before)


@pytest.mark.parametrize("engine", ["torch", "simulator decode_ms=3 prefill_ms=1"])
def test_a_python_loop_cell_leaves_half_the_throughput_of_32_streams(
    served: Kernel, engine: str
) -> None:
    served.ok(f"%llmserve start --engine {engine}", timeout=120)
    with crowd(served) as clients:
        assert clients.begun.wait(90)
        shares = shares_left(served, clients)
        seen = list(islice(shares, 4))
        while statistics.median(seen[-4:]) < 0.5 and len(seen) < 40:
            seen.append(next(shares))  # where neighbours had the cores, not the cell
    assert statistics.median(seen[-4:]) >= 0.5, seen


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
