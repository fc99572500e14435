"""Who knows the key comes in; the key is shown nowhere."""

from __future__ import annotations

import logging

import openai
import pytest

from llmserve.entrypoints.http.app import build_app
from llmserve.serving.api_keys import Keyring
from support.serving import KEY, MESSAGES, Serving

GUARDED = [
    ("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/metrics"),
    ("GET", "/llmserve/knobs"), ("PATCH", "/llmserve/knobs"), ("GET", "/nowhere"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("key", [None, "sk-wrong", KEY[:-1], KEY + "x", "sk-ключ"])
def test_without_the_key_nothing_is_told(
    server: Serving, method: str, path: str, key: str | None
) -> None:
    headers = {} if key is None else {b"Authorization": f"Bearer {key}".encode()}
    with server.http(key=None) as http:
        answer = http.request(method, path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_official_client_calls_it_an_authentication_error(server: Serving) -> None:
    with server.client("sk-wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_another_scheme_with_the_right_key_is_refused(server: Serving) -> None:
    with server.http(key=None) as http:
        answer = http.get("/v1/models", headers={"Authorization": f"Basic {KEY}"})
    assert answer.status_code == 401


@pytest.mark.parametrize("name", ["x-api-key", "api-key"])
def test_the_key_may_come_as_anthropics_and_azures_clients_send_it(
    server: Serving, name: str
) -> None:
    with server.http(key=None) as http:
        for key, status in ((KEY, 200), ("sk-wrong", 401), (f"Bearer {KEY}", 401), ("", 401)):
            assert http.get("/v1/models", headers={name: key}).status_code == status


RIGHT = [
    ("Authorization", f"Bearer {KEY}"), ("authorization", f"bEARER   {KEY}"),
    ("X-API-Key", KEY), ("api-key", KEY),
]  # fmt: skip
WRONG = [
    ("Authorization", "Bearer sk-wrong"), ("Authorization", "token of-a-proxy"),
    ("Authorization", f"Basic {KEY}"), ("Authorization", ""), ("x-api-key", "sk-wrong"),
    ("api-key", f"Bearer {KEY}"), ("Proxy-Authorization", f"Bearer {KEY}"),
]  # fmt: skip


@pytest.mark.parametrize("right", RIGHT, ids=[name for name, _ in RIGHT])
def test_a_right_key_opens_whatever_is_sent_beside_it(
    server: Serving, right: tuple[str, str]
) -> None:
    with server.http(key=None) as http:
        for wrong in WRONG:
            assert http.get("/v1/models", headers=[wrong]).status_code == 401, wrong
            for both in ([wrong, right], [right, wrong]):
                assert http.get("/v1/models", headers=both).status_code == 200, both
        assert http.get("/v1/models", headers=WRONG).status_code == 401
        assert http.get("/v1/models", headers=[*WRONG, right]).status_code == 200


def test_health_needs_no_key(server: Serving) -> None:
    with server.http(key=None) as http:
        assert http.get("/health").status_code == 200


def test_no_page_of_another_origin_is_let_in(server: Serving) -> None:
    with server.http() as http:
        asked = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
        for answer in (
            http.options("/v1/chat/completions", headers=asked),
            http.get("/v1/models", headers=asked),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_key_is_in_no_log_and_no_repr(
    server: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-only-for-this-test"
    for name in ("", "uvicorn.error", "llmserve", "asyncio"):
        caplog.set_level(logging.DEBUG, name)
    with server.http() as http:
        http.get("/v1/models")
        http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1})
        http.post("/v1/chat/completions", content=b"{")
    served = [record for record in caplog.records if not record.name.startswith("http")]
    assert KEY not in " ".join(record.getMessage() for record in served)
    app = build_app(server.service, server.telemetry, Keyring(key, {}))
    shown = [app, app.user_middleware, app.router.routes, vars(app), Keyring(key, {}), app.state]
    assert key not in " ".join(f"{thing!r} {thing!s}" for thing in shown)
