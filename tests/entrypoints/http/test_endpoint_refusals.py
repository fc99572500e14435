"""Refusals are statuses of their own, for a stream too, as long as nothing was sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx
import openai
import pytest

from llmserve.core.events import Dispatched, Finished, FirstToken
from support.serving import MESSAGES, Serving

CHAT = "/v1/chat/completions"
BODY = {"messages": MESSAGES, "max_tokens": 4}
either = pytest.mark.parametrize("streaming", [True, False])


@contextmanager
def full_house(server: Serving, **knobs: object) -> Iterator[None]:
    """One place, and somebody in it for as long as the block lasts."""
    with server.knobs(max_active=1, **knobs), server.tail() as tail:
        with closing(server.post_and_hold(CHAT, server.long_body(stream=True))):
            inside = tail.wait(Dispatched)
            yield
        tail.wait(Finished, lambda e: e.request_id == inside.request_id)


def error_of(answer: httpx.Response) -> dict[str, object]:
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, object] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@either
def test_no_place_is_429_and_says_when_to_return(
    server: Serving, http: httpx.Client, streaming: bool
) -> None:
    with full_house(server, queue_mode="reject"):
        answer = http.post(CHAT, json={**BODY, "stream": streaming})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert error_of(answer)["code"] == "no_place"


def test_a_full_queue_is_the_clients_rate_limit_error(
    server: Serving, client: openai.OpenAI
) -> None:
    with full_house(server, queue_max=0), pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=server.model, messages=MESSAGES, max_tokens=4)
    assert caught.value.code == "queue_full"
    assert "retry-after" in caught.value.response.headers


def test_a_refused_choice_takes_back_those_before_it(
    server: Serving, http: httpx.Client
) -> None:
    with server.knobs(max_active=1, queue_max=1):
        answer = http.post(CHAT, json={**server.long_body(stream=False), "n": 4})
        assert answer.status_code == 429
        assert http.post(CHAT, json=BODY).status_code == 200
    assert server.telemetry.snapshot().waiting == 0


@either
def test_a_wait_that_is_too_long_is_503(
    server: Serving, http: httpx.Client, streaming: bool
) -> None:
    with full_house(server, queue_timeout_s=0.05):
        answer = http.post(CHAT, json={**BODY, "stream": streaming})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert error_of(answer)["code"] == "queue_timeout"


def test_a_life_that_is_too_long_is_504(server: Serving, http: httpx.Client) -> None:
    with server.knobs(request_timeout_s=0.05):
        answer = http.post(CHAT, json=server.long_body(stream=False))
    assert answer.status_code == 504
    assert error_of(answer)["code"] == "request_timeout"


def test_an_error_after_the_first_chunk_is_the_streams_last_event(
    server: Serving, http: httpx.Client
) -> None:
    with (
        server.knobs(),
        server.tail() as tail,
        http.stream("POST", CHAT, json=server.long_body(stream=True)) as answer,
    ):
        assert answer.status_code == 200
        tail.wait(FirstToken)
        server.set({"request_timeout_s": 0.01})
        *_, error, done = [line for line in answer.iter_lines() if line]
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "request_timeout"
    assert done == "data: [DONE]"


def test_the_official_client_raises_an_error_from_within_a_stream(
    server: Serving, client: openai.OpenAI
) -> None:
    with server.knobs():
        chunks = client.chat.completions.create(
            model=server.model, messages=MESSAGES, stream=True, extra_body={"ignore_eos": True}
        )
        next(chunks)
        server.set({"request_timeout_s": 0.01})
        with pytest.raises(openai.APIError, match="request_timeout_s"):
            list(chunks)
