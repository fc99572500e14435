"""Bounds on what comes before a key could be asked for."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator

import httpx
import pytest

from llmserve.endpoint import connection
from llmserve.endpoint.connection import MAX_HEAD_BYTES
from llmserve.events import FirstToken
from support.serving import KEY, PATIENCE_S, Serving, serving

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


@pytest.fixture(scope="module")
def own() -> Iterator[Serving]:
    with serving("simulator", decode_ms=2.0) as made:
        yield made


def connect(own: Serving) -> socket.socket:
    return socket.create_connection(("127.0.0.1", own.server.port), PATIENCE_S)


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
    with connect(own) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nx: " + b"a" * (MAX_HEAD_BYTES + 1))
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
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.05)
    with connect(own) as sock:
        sock.sendall(sent)
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")


def test_a_line_end_too_many_behind_a_body_ends_no_stream(
    own: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.05)
    with own.tail() as tail, own.post_and_hold(CHAT, own.long_body(stream=True)) as sock:
        begun = tail.wait(FirstToken)
        sock.sendall(b"\r\n")
        with own.http() as http:  # is as long as many of those waits
            body = {"prompt": "The sea", "max_tokens": 100, "ignore_eos": True}
            http.post("/v1/completions", json=body)
        assert own.service.find(begun.request_id) is not None


def test_a_slow_reply_to_a_whole_head_is_waited_for(
    own: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.05)
    with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=PATIENCE_S) as http:
        body = {"prompt": "The sea", "max_tokens": 100, "ignore_eos": True}
        answer = http.post(f"{own.root}/v1/completions", json=body)
    assert answer.json()["usage"]["completion_tokens"] == 100
