"""The limit of one Python process: a loop that writes prepared frames to as many sockets.

    python -m benchmarks.front_bare --step-ms 5 --words 1

It reads a request's head and body and looks at neither, sends the head of a stream, and from then
on one frame per step and stream. The loop is the one that llmserve serves on. words: a frame has so
many words, and comes every so many steps. `--step-ms 0` writes as fast as sockets take it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
import time

from llmserve.serving.runtime import new_loop

_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 30 Nov 2026 05:21:59 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"x-accel-buffering: no\r\ntransfer-encoding: chunked\r\n\r\n"
)
_FRAME = (
    b'data: {"id":"cmpl-39e26b78556e-1","object":"text_completion","created":1796016119,'
    b'"model":"simulator","system_fingerprint":"fp_cbca7fc41e","choices":[{"index":0,"text":"%b",'
    b'"logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n'
)
FULL = 1 << 18
"""A socket with so much waiting is passed over: the client is what is slow then."""


def frame(words: int) -> bytes:
    body = _FRAME % (b" evening" * words)
    return b"%x\r\n%b\r\n" % (len(body), body)


class Connection(asyncio.Protocol):
    def __init__(self, all_open: set[asyncio.Transport]) -> None:
        self._open = all_open
        self._data = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's only behaves as one

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._data.endswith(b"}"):
            self._transport.write(_HEAD)
            self._open.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self._transport)


async def serve(step_s: float, words: int) -> None:
    loop, every = asyncio.get_running_loop(), set[asyncio.Transport]()
    server = await loop.create_server(lambda: Connection(every), "127.0.0.1", 0, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    told = {"url": f"http://127.0.0.1:{port}/v1", "key": "none", "model": "bare", "pids": []}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    prepared, gap, due = frame(words), step_s * words, time.monotonic()
    while True:
        due = max(due + gap, time.monotonic() - 0.1)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        for transport in list(every):
            if transport.get_write_buffer_size() < FULL:
                transport.write(prepared)


def _leave_with_the_parent() -> None:
    while line := sys.stdin.readline():
        if line.strip():
            sys.stdout.write("null\n")
            sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-ms", type=float, required=True)
    parser.add_argument("--words", type=int, default=1)
    options = parser.parse_args()
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    runner = new_loop()
    runner.run_until_complete(serve(options.step_ms / 1e3, options.words))
