"""Bytes that no client sends: no 5xx, no hang, and nothing left behind."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.examples import examples
from support.raw_http import connect, read_all, request
from support.serving import KEY, Serving, serving

ASK: dict[str, object] = {"prompt": "The sea", "max_tokens": 3, "ignore_eos": True}
RAW = json.dumps(ASK).encode()
LINES = (
    b"GET /v1/models HTTP/1.1", b"POST /v1/completions HTTP/1.1", b"HEAD /health HTTP/1.0",
    b"POST /v1/chat/completions HTTP/1.0", b"OPTIONS /v1/models HTTP/1.1", b"GET * HTTP/1.1",
    b"PATCH http://x/llmserve/knobs HTTP/1.1", b"GET /llmserve/steps?limit=-1 HTTP/1.1",
)  # fmt: skip
HEADERS = (
    f"Authorization: Bearer {KEY}".encode(), b"Authorization: Bearer", b"x-api-key: \xff",
    b"Content-Length: 60", b"Content-Length: 0", b"Content-Length: 99999999999",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", b"Connection: close",
    b"Connection: keep-alive, Upgrade", b"Upgrade: h2c", b"Expect: 100-continue",
    b"Content-Type: application/json", b"Content-Type: text/\xe9", b"Content-Encoding: gzip",
    b"Content-Encoding: deflate, gzip", b"Host: ", b"Host: a", b"Origin: https://app.example",
    b"Access-Control-Request-Method: \xff", b"X-Request-Id: \xff\xfe", b"X-Priority: NaN",
    b"X-Tenant: \xc3", b"Cache-Control: no-store", b": nameless", b" folded", b"Odd\0: 1",
)  # fmt: skip
BODIES = (RAW, b"", b"{", gzip.compress(RAW), zlib.compress(RAW), b"3c\r\n" + RAW, b"0\r\n\r\n")


def head(line: bytes, headers: Sequence[bytes]) -> bytes:
    return b"\r\n".join([line, *headers, b"", b""])


HEADS = st.builds(head, st.sampled_from(LINES), st.lists(st.sampled_from(HEADERS), max_size=6))
GOOD = st.sampled_from([request("POST", "/v1/completions", ASK), request("GET", "/v1/models")])
PARTS = st.one_of(HEADS, GOOD, st.sampled_from(BODIES), st.binary(max_size=40))
SENT = st.lists(PARTS, min_size=1, max_size=5).map(b"".join)
CUTS = st.lists(st.integers(0, 400), max_size=4)
ENDS = st.sampled_from(["half-closed", "closed", "reset"])


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Serving]:
    options: dict[str, Any] = {"prefill_ms": 0.1, "decode_ms": 0.1, "max_model_len": 64}
    with serving("simulator", origins=("https://app.example",), **options) as made:
        yield made


def say(served: Serving, sent: bytes, cuts: Sequence[int], end: str) -> bytes:
    """What comes back until the server closes, where it is waited for."""
    with connect(served) as sock, suppress(ConnectionError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        at = 0
        for cut in [*cuts, len(sent)]:
            sock.sendall(sent[at : at + cut])
            at += cut
        if end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if end == "half-closed":
            with suppress(OSError):  # the server has reset it
                sock.shutdown(socket.SHUT_WR)
            return read_all(sock)
    return b""


@given(SENT, CUTS, ENDS)
@example(request("GET", "/v1/%") + request("GET", "/v1/models", None, "Upgrade: x"), [], "closed")
@settings(
    max_examples=examples(600), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_whatever_comes_is_answered_or_closed(
    fuzzed: Serving, sent: bytes, cuts: Sequence[int], end: str
) -> None:
    came = say(fuzzed, sent, cuts, end)
    assert came == b"" or came.startswith(b"HTTP/1.1 ")
    assert re.search(rb"HTTP/1\.1 5\d\d ", came) is None, came


def test_nothing_is_left_of_them(fuzzed: Serving) -> None:
    async def leftovers() -> tuple[int, int]:
        state = fuzzed.server._uvicorn.server_state
        while state.connections or state.tasks:  # noqa: ASYNC110  # sets that tell nobody
            await asyncio.sleep(0.01)
        ours = [t for t in asyncio.all_tasks() if "run_asgi" in repr(t) or "_answer" in repr(t)]
        return len(ours), fuzzed.service._scheduler.waiting

    for end in ("half-closed", "closed", "reset"):
        for cut in range(1, len(RAW) + 200, 9):
            say(fuzzed, (request("POST", "/v1/completions", ASK) * 2)[:cut], [cut // 2], end)
    assert fuzzed.runtime.call(leftovers(), 60) == (0, 0)
    assert fuzzed.telemetry.snapshot().running == 0
    with fuzzed.http() as http:
        assert http.post("/v1/completions", json=ASK).status_code == 200
