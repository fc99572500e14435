"""HTTP as few clients speak it, over bare sockets: each gets a sane answer, and none a 5xx."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from support.raw_http import CLOSE, Answer, answer, answers, connect, read_all, request, talk
from support.serving import KEY, Serving

COMPLETIONS, MODELS = "/v1/completions", "/v1/models"
ASK: dict[str, object] = {"prompt": "The sea", "max_tokens": 3, "ignore_eos": True}
STREAM = {**ASK, "stream": True}
OF_ASK = len(json.dumps(ASK))
UPGRADE = ("Connection: Upgrade, HTTP2-Settings, close", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
HELLO = b"HTTP/1.1 100 Continue\r\n\r\n"


class Corner(NamedTuple):
    """What is sent, to which methods the answers are, and their statuses."""

    sent: bytes
    methods: Sequence[str]
    statuses: Sequence[int]


def asked(method: str, target: str, *headers: str, key: str = KEY) -> bytes:
    return request(method, target, None, CLOSE, *headers, key=key)


def bare(*lines: str, body: bytes = b"") -> bytes:
    key = f"Authorization: Bearer {KEY}"
    return "\r\n".join([lines[0], key, *lines[1:], "", ""]).encode() + body


CORNERS = {
    "HEAD": Corner(asked("HEAD", MODELS), ["HEAD"], [200]),
    "HEAD of health": Corner(asked("HEAD", "/health"), ["HEAD"], [200]),
    "HEAD of a POST route": Corner(asked("HEAD", COMPLETIONS), ["HEAD"], [405]),
    "HEAD without a key": Corner(asked("HEAD", MODELS, key="sk-wrong"), ["HEAD"], [401]),
    "OPTIONS": Corner(asked("OPTIONS", "/llmserve/requests"), ["OPTIONS"], [204]),
    "OPTIONS without a key": Corner(asked("OPTIONS", MODELS, key=""), ["OPTIONS"], [401]),
    "OPTIONS of all": Corner(asked("OPTIONS", "*"), ["OPTIONS"], [404]),
    "another method": Corner(asked("DELETE", MODELS), ["DELETE"], [405]),
    "a strange method": Corner(asked("PURGE", "/health"), ["PURGE"], [405]),
    "an unknown method": Corner(bare("BREW /health HTTP/1.1"), ["BREW"], [400]),
    "CONNECT": Corner(bare("CONNECT test:80 HTTP/1.1"), ["CONNECT"], [400]),
    "an absolute target": Corner(asked("GET", f"http://test{MODELS}"), ["GET"], [200]),
    "an absolute target elsewhere": Corner(
        asked("GET", "https://other.example:99/health?x=1"), ["GET"], [200]
    ),
    "a target without a path": Corner(bare("GET ?a=1 HTTP/1.1"), ["GET"], [400]),
    "a target beyond ASCII": Corner(bare("GET /\xfc HTTP/1.1"), ["GET"], [400]),
    "a target of escapes": Corner(asked("GET", "/v1/%ff%00%2e"), ["GET"], [404]),
    "two slashes": Corner(asked("GET", "//v1/models"), ["GET"], [404]),
    "no Host": Corner(bare("GET /v1/models HTTP/1.1", CLOSE), ["GET"], [200]),
    "bare line ends": Corner(b"GET /health HTTP/1.1\nHost: x\n\n", ["GET"], [400]),
    "HTTP/1.2": Corner(bare("GET /health HTTP/1.2"), ["GET"], [400]),
    "HTTP/2": Corner(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ["PRI"], [400]),
    "HTTP/0.9": Corner(b"GET /health\r\n\r\n", ["GET"], [200]),
    "a body on a GET": Corner(
        request("GET", MODELS, ASK) + asked("GET", "/health"), ["GET"] * 2, [200, 200]
    ),
    "an error, then another request": Corner(
        request("POST", COMPLETIONS, b"{") + request("POST", COMPLETIONS, {"prompt": 5})
        + request("POST", "/nowhere", ASK) + request("POST", COMPLETIONS, ASK, key="sk-wrong")
        + asked("GET", MODELS),
        ["POST"] * 4 + ["GET"],
        [400, 400, 404, 401, 200],
    ),
    "requests in a pipeline": Corner(
        request("POST", COMPLETIONS, ASK) + request("HEAD", MODELS)
        + request("POST", COMPLETIONS, STREAM) + asked("GET", "/health"),
        ["POST", "HEAD", "POST", "GET"],
        [200] * 4,
    ),
    "garbage behind a request": Corner(
        request("POST", COMPLETIONS, ASK) + b"\0\1\2 what?\r\n\r\n", ["POST"], [200]
    ),
    "the same length twice": Corner(
        request("POST", COMPLETIONS, ASK, f"Content-Length: {OF_ASK}"), ["POST"], [400]
    ),
    "two lengths": Corner(request("POST", COMPLETIONS, ASK, "Content-Length: 3"), ["POST"], [400]),
    "a length and chunks": Corner(
        request("POST", COMPLETIONS, ASK, "Transfer-Encoding: chunked"), ["POST"], [400]
    ),
    "a length of two": Corner(
        bare("POST /v1/completions HTTP/1.1", "Content-Length: 3, 3", body=b"abc"), ["POST"], [400]
    ),
    "a length below zero": Corner(
        bare("POST /v1/completions HTTP/1.1", "Content-Length: -3", body=b"abc"), ["POST"], [400]
    ),
    "a length with a sign": Corner(
        bare("POST /v1/completions HTTP/1.1", "Content-Length: +3", body=b"abc"), ["POST"], [400]
    ),
    "a length beyond numbers": Corner(
        bare("POST /v1/completions HTTP/1.1", f"Content-Length: {'9' * 40}"), ["POST"], [400]
    ),
    "a length beyond the bound": Corner(
        bare("POST /v1/completions HTTP/1.1", f"Content-Length: {'9' * 15}", CLOSE), ["POST"], [413]
    ),
    "chunks of no length": Corner(
        bare("POST /v1/completions HTTP/1.1", "Transfer-Encoding: chunked", body=b"zz\r\n\r\n"),
        ["POST"], [400],
    ),
    "chunks that are not last": Corner(
        bare("POST /v1/completions HTTP/1.1", "Transfer-Encoding: chunked, gzip"), ["POST"], [400]
    ),
    "chunks with trailers and extensions": Corner(
        bare(
            "POST /v1/completions HTTP/1.1", "Transfer-Encoding: chunked", CLOSE,
            body=b"%x;a=b\r\n%s\r\n0\r\nX-Late: 1\r\n\r\n" % (OF_ASK, json.dumps(ASK).encode()),
        ),
        ["POST"], [200],
    ),
    "Expect of something else": Corner(
        request("POST", COMPLETIONS, ASK, "Expect: 200-maybe", CLOSE), ["POST"], [200]
    ),
    "a wish for HTTP/2": Corner(asked("GET", MODELS, *UPGRADE), ["GET"], [200]),
    "a wish for HTTP/2 with a body": Corner(
        request("POST", COMPLETIONS, STREAM, *UPGRADE), ["POST"], [200]
    ),
    "a wish for HTTP/2 in a pipeline": Corner(
        request("POST", COMPLETIONS, ASK, "Connection: Upgrade", "Upgrade: h2c") * 2
        + request("POST", COMPLETIONS, ASK, *UPGRADE),
        ["POST"] * 3, [200] * 3,
    ),
    "a wish for WebSocket": Corner(
        asked("GET", MODELS, "Connection: Upgrade", "Upgrade: websocket",
              "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
        ["GET"], [200],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CORNERS)
def test_each_gets_its_answer_in_one_piece(server: Serving, what: str) -> None:
    corner = CORNERS[what]
    whole = answers(talk(server, corner.sent), corner.methods)
    assert [one.status for one in whole] == [*corner.statuses]


WELL = [what for what, corner in CORNERS.items() if 400 not in corner.statuses]
"""Of the others the refusal may come before the last part, which then resets the connection."""


@pytest.mark.parametrize("what", WELL)
def test_and_the_same_however_it_is_cut(own: Serving, what: str) -> None:
    corner = CORNERS[what]
    parts = [corner.sent[at : at + 7] for at in range(0, len(corner.sent), 7)]
    told = answers(talk(own, *parts), corner.methods)
    assert [one.status for one in told] == [*corner.statuses]


def test_options_names_the_methods_that_there_are(own: Serving) -> None:
    told = answer(talk(own, asked("OPTIONS", COMPLETIONS)), "OPTIONS")
    assert told.headers["allow"] == "POST"
    assert told.body == b""


def test_head_has_the_headers_of_get(server: Serving) -> None:
    head = answer(talk(server, asked("HEAD", MODELS)), "HEAD")
    whole = answer(talk(server, asked("GET", MODELS)), "GET")
    assert head.body == b""
    assert head.headers["content-length"] == whole.headers["content-length"]


def test_who_waits_for_100_is_asked_for_the_body_once(server: Serving) -> None:
    raw = request("POST", COMPLETIONS, ASK, "Expect: 100-continue", CLOSE)
    with connect(server) as sock:
        sock.sendall(raw[:-OF_ASK])
        first = sock.recv(len(HELLO))
        assert first == HELLO
        sock.sendall(raw[-OF_ASK:])
        assert answer(read_all(sock)).status == 200


def test_who_waits_for_100_is_refused_without_it(server: Serving) -> None:
    for headers, status in (
        (("Expect: 100-continue", "Content-Encoding: br"), 415),
        (("Expect: 100-continue", "Content-Type: text/plain"), 415),
    ):
        raw = bare("POST /v1/completions HTTP/1.1", "Content-Length: 50", *headers)
        with connect(server) as sock:
            sock.sendall(raw)
            assert sock.recv(65_536).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("keep", [(), ("Connection: keep-alive",), ("Expect: 100-continue",)])
@pytest.mark.parametrize("body", [ASK, STREAM], ids=["whole", "stream"])
def test_http_1_0_gets_an_answer_that_ends_by_closing(
    server: Serving, body: dict[str, object], keep: Sequence[str]
) -> None:
    came = talk(server, request("POST", COMPLETIONS, body, *keep, version="1.0"))
    told = answer(came)
    assert told.status == 200
    assert told.headers["connection"] == "close"
    assert "transfer-encoding" not in told.headers
    assert_said(told, stream=body is STREAM)


def test_http_1_0_has_no_pipeline(server: Serving) -> None:
    one = request("GET", MODELS, version="1.0")
    assert answer(talk(server, one + one), "GET").status == 200


def test_http_1_0_is_told_the_length_of_what_has_one(server: Serving) -> None:
    for target, method in ((MODELS, "GET"), (MODELS, "HEAD"), ("/metrics", "GET")):
        told = answer(talk(server, request(method, target, version="1.0")), method)
        assert int(told.headers["content-length"]) > 0
        assert (told.body == b"") == (method == "HEAD")


def assert_said(told: Answer, *, stream: bool) -> None:
    if stream:
        assert told.events[-1] == b"[DONE]"
        assert told.body.startswith(b"data: {")
    else:
        assert told.json["usage"]["completion_tokens"] == 3
