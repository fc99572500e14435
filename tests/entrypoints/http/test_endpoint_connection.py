"""Bounds on what comes before a key could be asked for."""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Callable
from http.client import HTTPResponse

import httpx
import pytest

from llmserve.core.events import FirstToken
from llmserve.entrypoints.http import connection
from llmserve.entrypoints.http.connection import MAX_HEAD_BYTES
from support.serving import PATIENCE_S, Serving

CHAT = "/v1/chat/completions"
TOO_MUCH = 512 * MAX_HEAD_BYTES
"""More than the socket's own buffers take."""
ENDLESS = {
    "headers": (b"GET /health HTTP/1.1\r\n", b"x-filler: aaaaaaaaaaaaaaaaaaaa\r\n"),
    "one header": (b"GET /health HTTP/1.1\r\nx-filler: ", b"a" * 1024),
    "the request line": (b"GET /", b"a" * 1024),
    "trailers": (
        b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
        b"x-filler: aaaaaaaaaaaaaaaaaaaa\r\n",
    ),
}


SOON_S = 0.05
LONG = {"prompt": "The sea", "max_tokens": 100, "ignore_eos": True}
"""At 2 ms a token it is as long as four of those waits."""


def connect(own: Serving) -> socket.socket:
    return socket.create_connection(("127.0.0.1", own.server.port), PATIENCE_S)


def at_once(own: Serving, send: Callable[[], socket.socket]) -> socket.socket:
    """While the loop stands still: it finds the connection and what was sent over it together."""

    async def main() -> socket.socket:
        return send()

    return own.runtime.call(main(), PATIENCE_S)


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65_536), b""))


@pytest.mark.parametrize("what", ENDLESS)
def test_what_has_no_end_ahead_of_a_body_is_cut_off(own: Serving, what: str) -> None:
    start, more = ENDLESS[what]
    with connect(own) as sock, pytest.raises(ConnectionError):
        sock.sendall(start + more * (TOO_MUCH // len(more)))
    with own.http() as http:
        assert http.get("/health").status_code == 200


def test_who_sends_long_headers_at_once_is_told(own: Serving) -> None:
    start = b"GET /health HTTP/1.1\r\nx: "
    with connect(own) as sock:  # one byte too many, so that none is left unread: that resets
        sock.sendall(start + b"a" * (MAX_HEAD_BYTES + 1 - len(start)))
        assert sock.recv(65_536).startswith(b"HTTP/1.1 400 ")


def test_headers_within_the_bound_are_served(own: Serving) -> None:
    with own.http() as http:
        for _ in range(3):  # on one connection: they do not add up
            long = {"x-filler": "a" * (MAX_HEAD_BYTES // 2)}
            assert http.get("/v1/models", headers=long).status_code == 200


def test_connections_leave_the_kernel_files_to_open(
    own: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda of: (4, 4))  # and two connections
    with own.http() as first, own.http() as second:
        assert first.get("/health").status_code == second.get("/health").status_code == 200
        with own.http() as third, pytest.raises(httpx.TransportError):
            third.get("/health")
        assert first.get("/health").status_code == 200
    monkeypatch.undo()
    with own.http() as later:
        assert later.get("/health").status_code == 200


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nx: 1\r\n"])
def test_who_sends_no_whole_head_is_let_go(
    own: Serving, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", SOON_S)

    def send() -> socket.socket:
        sock = connect(own)
        sock.sendall(sent)
        return sock

    with at_once(own, send) as sock:
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")


def test_a_line_end_too_many_behind_a_body_ends_no_stream(
    own: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own.tail() as tail, own.post_and_hold(CHAT, own.long_body(stream=True)) as sock:
        begun = tail.wait(FirstToken)
        with own.http() as http:
            http.get("/health")  # is connected
            monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", SOON_S)
            sock.sendall(b"\r\n")
            http.post("/v1/completions", json=LONG)
        assert own.service.find(begun.request_id) is not None


def test_a_slow_reply_to_a_whole_head_is_waited_for(
    own: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", SOON_S)
    sock = at_once(own, lambda: own.post_and_hold("/v1/completions", LONG))
    with sock, HTTPResponse(sock) as answer:
        answer.begin()
        told = json.load(answer)
    assert told["usage"]["completion_tokens"] == 100
