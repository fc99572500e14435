"""Pages in a browser: only those of listed origins may call, and read what is answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

import llmserve
from llmserve.entrypoints.http.app import build_app
from llmserve.entrypoints.http.cors import ANY, read_origins
from llmserve.entrypoints.http.options import EndpointOptions
from llmserve.entrypoints.http.server import HttpServer, bind
from llmserve.entrypoints.http.state import EndpointState
from llmserve.serving.api_keys import Keyring
from support.raw_http import request, talk
from support.serving import KEY, MESSAGES, Serving, serving

CHAT = "/v1/chat/completions"
APP, OTHER = "https://app.example", "https://other.example"
LISTED = (APP, "http://localhost:3000")
ASK: dict[str, object] = {"messages": MESSAGES, "max_tokens": 3}


@pytest.fixture(scope="module")
def open_to_pages() -> Iterator[Serving]:
    with serving("simulator", prefill_ms=1.0, decode_ms=1.0, origins=LISTED) as made:
        yield made


@pytest.fixture
def pages(open_to_pages: Serving) -> Iterator[httpx.Client]:
    with open_to_pages.http(key=None) as http:
        yield http


def preflight(origin: str, method: str = "POST", **more: str) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }


def given(answer: httpx.Response) -> dict[str, str]:
    return {k: v for k, v in answer.headers.items() if k.startswith("access-control")}


def readable_by(origin: str) -> dict[str, str]:
    return {"access-control-allow-origin": origin, "access-control-expose-headers": "*"}


@pytest.mark.parametrize("origin", LISTED)
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/health", "/nowhere"])
def test_a_preflight_of_a_listed_origin_is_answered_without_a_key(
    pages: httpx.Client, origin: str, path: str
) -> None:
    answer = pages.options(path, headers=preflight(origin))
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert "PATCH" in answer.headers["access-control-allow-methods"]
    assert "Origin" in answer.headers["vary"]
    assert "access-control-allow-credentials" not in answer.headers


def test_a_page_of_the_web_may_reach_this_machine_where_it_is_listed(pages: httpx.Client) -> None:
    asked = {"Access_Control_Request_Private_Network": "true"}
    answer = pages.options(CHAT, headers=preflight(APP, **asked))
    assert answer.headers["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize(
    "origin",
    [OTHER, "null", "", "https://APP.example", f"{APP}:443", f"{APP}.evil.example", "http://app.example",
     f"{APP}/", "*"],
)  # fmt: skip
def test_a_preflight_of_another_origin_is_told_nothing(pages: httpx.Client, origin: str) -> None:
    unasked = pages.options(CHAT, headers={"Access-Control-Request-Method": "POST"})
    for path in (CHAT, "/nowhere"):
        answer = pages.options(path, headers=preflight(origin))
        assert answer.status_code == 401
        assert answer.content == unasked.content
        assert given(answer) == {}
        assert APP not in str(answer.headers) + answer.text


def test_options_that_are_no_preflight_need_the_key(pages: httpx.Client) -> None:
    assert pages.options(CHAT, headers={"Origin": APP}).status_code == 401


def test_a_page_still_needs_the_key_and_can_read_that_it_does(pages: httpx.Client) -> None:
    answer = pages.post(CHAT, json=ASK, headers={"Origin": APP})
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == APP


def test_answers_good_and_bad_can_be_read_by_a_listed_origin_alone(open_to_pages: Serving) -> None:
    requests: list[tuple[str, str, object, int]] = [
        ("GET", "/v1/models", None, 200), ("POST", CHAT, ASK, 200), ("GET", "/nowhere", None, 404),
        ("POST", CHAT, {"messages": 5}, 400), ("DELETE", "/v1/models", None, 405),
        ("GET", "/health", None, 200), ("GET", "/metrics", None, 200),
    ]  # fmt: skip
    with open_to_pages.http() as http:
        for method, path, body, status in requests:
            for origin in (*LISTED, OTHER):
                answer = http.request(method, path, json=body, headers={"Origin": origin})
                assert answer.status_code == status, path
                assert given(answer) == (readable_by(origin) if origin in LISTED else {})
            assert given(http.request(method, path, json=body)) == {}


def test_a_full_queue_can_be_read_with_its_time_to_return(open_to_pages: Serving) -> None:
    with open_to_pages.knobs(queue_mode="reject", max_active=1), open_to_pages.http() as http:
        with open_to_pages.post_and_hold(CHAT, open_to_pages.long_body(stream=True)) as sock:
            sock.recv(1)
            answer = http.post(CHAT, json=ASK, headers={"Origin": APP})
        assert answer.status_code == 429
        assert answer.headers["access-control-allow-origin"] == APP
        assert answer.headers["access-control-expose-headers"] == "*"
        assert int(answer.headers["retry-after"]) >= 1


def test_a_defect_of_ours_can_be_read_too(
    open_to_pages: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EndpointState, "info", property(lambda self: 1 / 0))
    with open_to_pages.http() as http:
        answer = http.get("/v1/models", headers={"Origin": APP})
    assert answer.status_code == 500
    assert answer.headers["access-control-allow-origin"] == APP


def test_a_stream_reaches_the_page_frame_by_frame(open_to_pages: Serving) -> None:
    body = {**ASK, "stream": True}
    with (
        open_to_pages.http() as http,
        http.stream("POST", CHAT, json=body, headers={"Origin": APP}) as answer,
    ):
        assert answer.headers["access-control-allow-origin"] == APP
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert [line for line in answer.iter_lines() if line][-1] == "data: [DONE]"


def test_every_engines_answers_can_be_read(server: Serving) -> None:
    options = EndpointOptions(origins=LISTED)
    app = build_app(server.service, server.telemetry, Keyring(KEY, {}), options)
    second = HttpServer(app, bind("127.0.0.1", 0))
    server.runtime.call(second.start())
    with replace(server, server=second).http() as http:
        for body, status in ((ASK, 200), ({**ASK, "stream": True}, 200), ({"messages": 5}, 400)):
            answer = http.post(CHAT, json=body, headers={"Origin": APP})
            assert (answer.status_code, given(answer)) == (status, readable_by(APP))
    server.runtime.call(second.stop())


def test_without_the_option_no_engine_sends_a_page_anything(server: Serving) -> None:
    with server.http() as http:
        assert given(http.post(CHAT, json=ASK, headers={"Origin": APP})) == {}
        assert http.options(CHAT, headers=preflight(APP)).headers.get("allow") == "POST"


def test_all_origins_may_be_allowed_in_so_many_words() -> None:
    with serving("simulator", origins=(ANY,)) as made, made.http(key=None) as http:
        for origin in (APP, OTHER, "null"):
            assert given(http.options(CHAT, headers=preflight(origin)))[
                "access-control-allow-origin"
            ] == ANY  # fmt: skip
            answer = http.post(CHAT, json=ASK, headers={"Origin": origin})
            assert (answer.status_code, given(answer)["access-control-allow-origin"]) == (401, ANY)


def test_two_origins_at_once_are_none(open_to_pages: Serving) -> None:
    raw = request("GET", "/v1/models", None, f"Origin: {OTHER}, {APP}", "Connection: close")
    assert b"access-control" not in talk(open_to_pages, raw)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (None, ()), ("", None), ([], ()), (APP, (APP,)), (f"{APP}, {OTHER}", (APP, OTHER)),
        ([APP, APP], (APP,)), ("*", ("*",)), (["*"], ("*",)), ("http://[::1]:8080", None),
        ("http://localhost:3000", None), ("chrome-extension://abcdefghijkl", None),
        ("https://xn--bcher-kva.example", None), ("http://127.0.0.1:8888", None),
    ],
)  # fmt: skip
def test_origins_are_read_as_a_browser_sends_them(
    written: object, read: tuple[str, ...] | None
) -> None:
    if written == "":
        with pytest.raises(ValueError, match="write its scheme"):
            read_origins("")
        return
    assert read_origins(written) == (read if read is not None else (written,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("origin", "cure"),
    [
        (f"{APP}/", f"write '{APP}'"),
        (f"{APP}/chat?x=1", f"write '{APP}'"),
        ("https://me:secret@app.example", f"write '{APP}'"),
        ("HTTPS://App.Example:443", f"write '{APP}'"),
        ("http://app.example:80", "write 'http://app.example'"),
        ("https://b\xfccher.example", "write 'https://xn--bcher-kva.example'"),
        ("app.example", "write its scheme, as in 'https://app.example'"),
        ("localhost:3000", "write its scheme, as in 'https://localhost:3000'"),
        ("https://", "it names no host"),
        ("https://app.example:port", "Port could not be cast"),
        ("https://*.example", 'or "*" alone'),
        ("null", 'or write "*" alone'),
        (f"*,{APP}", 'cors_origins: "*" stands for all'),
        (f"{APP},{OTHER}/", f"{OTHER + '/'!r} is no origin"),
        (5, "cors_origins is a list of origins, not 5"),
        ([APP, 5], "cors_origins is a list of origins, not 5"),
        (b"https://app.example", "cors_origins is a list of origins"),
    ],
)
def test_what_no_browser_would_send_is_an_error_that_names_the_cure(
    origin: object, cure: str
) -> None:
    with pytest.raises(ValueError) as told:  # noqa: PT011  # the sentence is looked at below
        llmserve.serve(engine="simulator", cors_origins=origin)  # type: ignore[arg-type]
    assert cure in str(told.value)
    assert "cors_origins" in str(told.value)


def test_serve_takes_them() -> None:
    with llmserve.serve(engine="simulator", cors_origins=[APP]) as session:
        headers = {"Origin": APP, "Authorization": f"Bearer {session.api_key}"}
        answer = httpx.get(f"{session.url}/models", headers=headers)
        assert answer.headers["access-control-allow-origin"] == APP
        assert answer.status_code == 200
        assert KEY not in answer.text
