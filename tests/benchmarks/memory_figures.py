"""What the front keeps in memory: of an open stream, a waiting request, and those that are gone."""

from __future__ import annotations

import contextlib
import gc
import socket
import time
import tracemalloc
from collections.abc import Iterator

import llmserve
from llmserve.entrypoints.session.session import Session
from llmserve.lab import Workload, simulate
from support.leaks import rss_bytes
from support.raw_http import request

NUMBER = 400
FINISHED = 200_000


@contextlib.contextmanager
def _asking(session: Session, number: int) -> Iterator[None]:
    """So many streams that go on until the block is left."""
    port = int(session.url.rsplit(":", 1)[1].split("/")[0])
    body = {"prompt": "story", "max_tokens": 8000, "ignore_eos": True, "stream": True}
    raw = request("POST", "/v1/completions", body, key=session.api_key)
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), 60))
            sock.sendall(raw)
        yield


def _each(places: int) -> float:
    """Bytes that Python allocated for each of many requests, of which so many run: RSS shows not
    what reuses the room of those before. The buffers of sockets and of uvloop are not in it."""
    with llmserve.serve(
        engine="simulator", process=True, prefill_ms=0.0, decode_ms=1000.0, max_num_seqs=places,
        max_num_seqs_ceiling=NUMBER + 1, kv_capacity_tokens=10_000_000,
    ) as session:  # fmt: skip
        with _asking(session, 50):  # what is made once
            _until(session, 50)
        _until(session, 0)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            with _asking(session, NUMBER):
                _until(session, NUMBER)
                time.sleep(3)
                gc.collect()
                return (tracemalloc.get_traced_memory()[0] - before) / NUMBER
        finally:
            tracemalloc.stop()


def _until(session: Session, number: int) -> None:
    end = time.monotonic() + 60
    while (now := session.stats()).running + now.waiting != number:
        assert time.monotonic() < end, f"{now.running} run and {now.waiting} wait, not {number}"
        time.sleep(0.05)


def _finished() -> float:
    """Growth of RSS over as many requests on virtual time, once as many were before; per 10⁶. The
    result is folded, and dropped."""

    def run() -> None:
        simulate(Workload(rate=50.0, requests=FINISHED, max_tokens=8), decode_ms=1.0)
        gc.collect()

    run()
    before = rss_bytes()
    run()
    return (rss_bytes() - before) / FINISHED * 1e6


def memory_figures() -> None:
    print("\n| memory of the serving process | |\n|---|---|")
    print(f"| an open stream | {_each(NUMBER) / 1e3:.1f} kB |")
    print(f"| a waiting request | {_each(1) / 1e3:.1f} kB |")
    print(f"| 10⁶ finished requests, on virtual time | {_finished() / 1e6:.2f} MB |", flush=True)
