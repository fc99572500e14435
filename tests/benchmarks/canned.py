"""A server that only answers: its whole reply is ready before it is asked.

    python tests/benchmarks/canned.py [--tokens 16] [--gap-ms 10]

It prints its address, and lives until its input ends. One timer serves all connections, so that it
takes as little of the machine as can be from whoever is measured against it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading

import httptools
import msgspec

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(body: object) -> bytes:
    return chunk(b"data: " + msgspec.json.encode(body) + b"\n\n")


class Canned:
    """Replies by their pieces, and who is to be sent which one next."""

    def __init__(self, tokens: int) -> None:
        def told(reason: str | None) -> bytes:
            choice = {"index": 0, "text": " word", "logprobs": None, "finish_reason": reason}
            return event(
                {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "canned",
                 "choices": [choice], "usage": None}
            )  # fmt: skip

        usage = {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": tokens + 8}
        end = event({"id": "cmpl-1", "model": "canned", "choices": [], "usage": usage})
        end += chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        self.pieces = [told(None)] * (tokens - 1) + [told("length") + end]
        self.running: dict[asyncio.Transport, int] = {}

    def turn(self) -> None:
        for transport, number in list(self.running.items()):
            transport.write(self.pieces[number])
            self.running[transport] = number + 1
            if number + 1 == len(self.pieces) or transport.is_closing():
                del self.running[transport]


class Connection(asyncio.Protocol):
    def __init__(self, canned: Canned) -> None:
        self._canned = canned
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._canned.running.pop(self._transport, None)

    def on_message_complete(self) -> None:
        self._transport.write(_HEAD)
        self._canned.running[self._transport] = 0


async def serve(tokens: int, gap_s: float) -> None:
    canned, loop = Canned(tokens), asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(canned), "127.0.0.1", 0, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    sys.stdout.write(f"http://127.0.0.1:{port}/v1\n")
    sys.stdout.flush()
    due = loop.time()
    while True:
        due = max(due + gap_s, loop.time())
        await asyncio.sleep(due - loop.time())
        canned.turn()


def _leave_with_the_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--gap-ms", type=float, default=10.0)
    options = parser.parse_args()
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    asyncio.run(serve(options.tokens, options.gap_ms / 1e3))
