"""A crowd of clients that leave, half-close, read slowly or never: the others get every word, and
nothing of the crowd stays."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
from collections.abc import Iterator

import httpx
import pytest

from llmserve.entrypoints.http.leaving import Exchange
from support.leaks import Held, held
from support.serving import KEY, PATIENCE_S, Serving, serving
from support.unruly import LEAVERS, READERS, Unruly

_INTERVALS_MS = (0.0, 1.0, 50.0)
_OF_A_KIND = 10


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    with serving("simulator", process=True, prefill_ms=1.0, decode_ms=3.0) as one:
        yield one


def settled(served: Serving, before: Held) -> dict[str, int]:
    """What is still held beyond what was, once that is nothing or patience is over."""
    end = time.monotonic() + PATIENCE_S
    while (more := held(served).beyond(before)) and time.monotonic() < end:
        time.sleep(0.05)
    return more


def test_who_stays_gets_every_word_and_who_leaves_leaves_nothing(
    served: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    clients = Unruly(served.server.port, KEY, patience_s=PATIENCE_S)

    async def all_at_once() -> None:
        every = [
            clients.client(kind, random.Random(f"{kind} {number}"))
            for kind in (*READERS, *LEAVERS)
            for number in range(_OF_A_KIND)
        ]
        turning = asyncio.create_task(turn())
        await asyncio.gather(*every)
        turning.cancel()

    async def turn() -> None:
        while True:
            for interval in _INTERVALS_MS:
                await asyncio.to_thread(served.set, {"stream_interval_ms": interval})
                await asyncio.sleep(0.02)

    asyncio.run(clients.learn(2))
    before = held(served)
    with caplog.at_level(logging.WARNING):
        asyncio.run(all_at_once())
        assert settled(served, before) == {}
    assert clients.seen.wrong == []
    assert not clients.seen.failed
    assert [one.getMessage() for one in caplog.records] == []


def test_an_open_answer_and_its_client_are_seen_as_held(served: Serving) -> None:
    before = held(served)
    with served.knobs(stream_interval_ms=50.0):
        sock = served.post_and_hold("/v1/chat/completions", served.long_body(stream=True))
        with sock:
            assert sock.recv(1000)
            more = held(served).beyond(before)
    assert {"slots", "blocks", "descriptors", "tasks", "streams"} <= more.keys()
    assert settled(served, before) == {}


def test_what_an_answer_held_is_free_before_the_collector_looks(served: Serving) -> None:
    host = f"127.0.0.1:{served.server.port}"
    body = {"prompt": "a b", "max_tokens": 4, "stream": True}
    with httpx.Client(base_url=f"http://{host}", headers={"authorization": f"Bearer {KEY}"}) as one:
        one.post("/v1/completions", json=body)
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                assert one.post("/v1/completions", json=body).text.endswith("data: [DONE]\n\n")
            alive = [each for each in gc.get_objects() if type(each) is Exchange]
        finally:
            gc.enable()
    assert len(alive) < 5
