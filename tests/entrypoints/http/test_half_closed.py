"""A client that closes its half of the connection behind the request still gets its answer."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from llmserve.core.events import Finished, FirstToken, Submitted
from support.raw_http import answer, answers, connect, read_all, request, talk
from support.serving import Serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, object] = {"prompt": "The sea", "max_tokens": 12, "ignore_eos": True}
LONG: dict[str, object] = {"prompt": "The sea", "max_tokens": 300, "ignore_eos": True}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_half_closed_client_gets_its_whole_answer(server: Serving, version: str) -> None:
    came = talk(server, request("POST", COMPLETIONS, ASK, version=version), half_close=True)
    told = answer(came)
    assert told.status == 200
    assert told.headers["connection"] == "close"
    assert told.json["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_half_closed_client_gets_its_whole_stream(server: Serving, version: str) -> None:
    ask = {**LONG, "stream": True, "stream_options": {"include_usage": True}}
    came = talk(server, request("POST", COMPLETIONS, ask, version=version), half_close=True)
    told = answer(came)
    assert told.events[-1] == b"[DONE]"
    assert b'"completion_tokens":300' in told.events[-2]


def test_a_client_that_half_closes_in_the_middle_of_its_stream_gets_the_rest(
    server: Serving,
) -> None:
    with server.tail() as tail, connect(server) as sock:
        sock.sendall(request("POST", COMPLETIONS, {**LONG, "stream": True}))
        tail.wait(FirstToken)
        sock.shutdown(socket.SHUT_WR)
        told = answer(read_all(sock))
        assert tail.wait(Finished).reason == "length"
    assert told.events[-1] == b"[DONE]"


def test_a_half_closed_client_gets_refusals_and_routes_that_answer_at_once(
    server: Serving,
) -> None:
    for raw, status in (
        (request("GET", "/health"), 200),
        (request("GET", "/v1/models"), 200),
        (request("GET", "/v1/models", key="sk-wrong"), 401),
        (request("POST", COMPLETIONS, b"{"), 400),
        (request("GET", "/nowhere"), 404),
    ):
        assert answer(talk(server, raw, half_close=True), "GET").status == status


def test_all_that_was_asked_ahead_of_the_half_close_is_answered_in_order(own: Serving) -> None:
    asked = [request("POST", COMPLETIONS, {**ASK, "max_tokens": n}) for n in (5, 1, 3)]
    came = talk(own, b"".join(asked), half_close=True)
    told = answers(came, ["POST"] * 3)
    assert [one.json["usage"]["completion_tokens"] for one in told] == [5, 1, 3]
    assert [one.headers.get("connection") for one in told] == [None, None, "close"]


def test_a_request_cut_short_is_dropped_and_the_ones_ahead_of_it_are_answered(
    own: Serving,
) -> None:
    whole, cut = request("POST", COMPLETIONS, ASK), request("POST", COMPLETIONS, ASK)[:-3]
    told = answer(talk(own, whole + cut, half_close=True))
    assert told.headers["connection"] == "close"
    assert talk(own, cut, half_close=True) == b""
    assert talk(own, cut[:20], half_close=True) == b""


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("streaming", [True, False])
def test_leaving_after_the_half_close_frees_the_place(
    own: Serving, version: str, streaming: bool
) -> None:
    body = own.long_body(stream=streaming)
    with own.tail() as tail:
        with closing(connect(own)) as sock:
            sock.sendall(request("POST", CHAT, body, version=version))
            tail.wait(Submitted)
            sock.shutdown(socket.SHUT_WR)
            tail.wait(FirstToken)
        assert tail.wait(Finished).reason == "abort"


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_leaving_by_a_reset_or_a_plain_close_stops_a_whole_answer(
    own: Serving, version: str
) -> None:
    for linger in (b"\1\0\0\0\0\0\0\0", None):  # on, and 0 s: closing resets
        with own.tail() as tail:
            with closing(connect(own)) as sock:
                if linger is not None:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                sock.sendall(request("POST", CHAT, own.long_body(stream=False), version=version))
                tail.wait(FirstToken)
            assert tail.wait(Finished).reason == "abort"


@pytest.mark.parametrize("streaming", [True, False])
def test_leaving_stops_an_answer_that_others_of_the_connection_wait_behind(
    own: Serving, streaming: bool
) -> None:
    with own.tail() as tail:
        with closing(connect(own)) as sock:
            long = request("POST", CHAT, own.long_body(stream=streaming))
            sock.sendall(long + request("POST", CHAT, own.long_body(stream=streaming)))
            tail.wait(FirstToken)
        assert tail.wait(Finished).reason == "abort"
        with own.http() as http:
            http.get("/health")
    assert own.telemetry.snapshot().running == own.telemetry.snapshot().waiting == 0


def test_a_half_closed_client_that_was_let_go_leaves_no_connection(own: Serving) -> None:
    connections = own.server._uvicorn.server_state.connections
    for _ in range(20):
        talk(own, request("POST", COMPLETIONS, ASK), half_close=True)
    with own.http() as http:
        http.get("/health")
        assert len(connections) == 1
