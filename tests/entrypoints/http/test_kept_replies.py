"""Kept replies over HTTP: the same tests against every engine there is, on a second server in front
of the shared one's service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest

from llmserve.core.events import CacheLooked, Event, Submitted
from llmserve.entrypoints.http.app import build_app
from llmserve.entrypoints.http.options import EndpointOptions
from llmserve.entrypoints.http.response_cache import CacheOptions
from llmserve.entrypoints.http.server import HttpServer, bind
from llmserve.serving.api_keys import Keyring
from support.serving import KEY, MESSAGES, Serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CERTAIN: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0}


@pytest.fixture
def kept(server: Serving) -> Iterator[Serving]:
    """Begins with nothing kept."""
    options = EndpointOptions(CacheOptions())
    app = build_app(server.service, server.telemetry, Keyring(KEY, {}), options)
    second = HttpServer(app, bind("127.0.0.1", 0))
    server.runtime.call(second.start())
    yield replace(server, server=second)
    server.runtime.call(second.stop())


@pytest.fixture
def http(kept: Serving) -> Iterator[httpx.Client]:
    with kept.http() as made:
        yield made


@pytest.fixture
def seen(kept: Serving) -> Iterator[list[Event]]:
    events: list[Event] = []
    kept.bus.attach(events.append)
    yield events
    kept.bus.detach(events.append)


def computed(seen: list[Event]) -> int:
    return sum(isinstance(event, Submitted) for event in seen)


def told(answer: httpx.Response) -> str | None:
    assert answer.status_code == 200, answer.text
    found: str | None = answer.headers.get("x-llmserve-cache")
    return found


def said(answer: httpx.Response) -> Any:
    """All of it but what names the one call."""
    return {name: part for name, part in answer.json().items() if name not in ("id", "created")}


def streamed(answer: httpx.Response) -> str:
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, CERTAIN),
        (CHAT, {**CERTAIN, "temperature": 1, "seed": 7, "n": 2}),
        (CHAT, {**CERTAIN, "logprobs": True, "top_logprobs": 2}),
        (COMPLETIONS, {"prompt": "Once upon", "max_tokens": 9, "temperature": 0, "logprobs": 1}),
        (COMPLETIONS, {"prompt": ["Once", "A fox"], "max_tokens": 9, "temperature": 0}),
        (COMPLETIONS, {"prompt": "Once", "echo": True, "logprobs": 1, "temperature": 0}),
    ],
    ids=["chat", "choices", "logprobs", "completion", "prompts", "echo"],
)
def test_a_certain_reply_is_computed_once_and_told_again_in_full(
    http: httpx.Client, seen: list[Event], path: str, body: dict[str, Any]
) -> None:
    first = http.post(path, json=body)
    at_first = computed(seen)
    again = http.post(path, json=body)
    assert (told(first), told(again)) == ("miss", "hit")
    assert said(again) == said(first)
    assert computed(seen) == at_first == len(first.json()["choices"])
    third = http.post(path, json=body)
    assert said(third) == said(first), "telling it again has changed what is kept"


def test_a_kept_reply_streams_and_a_streamed_one_is_kept(http: httpx.Client) -> None:
    stream = {**CERTAIN, "stream": True}
    first = http.post(CHAT, json=stream)
    again, whole = http.post(CHAT, json=stream), http.post(CHAT, json=CERTAIN)
    assert [told(answer) for answer in (first, again, whole)] == ["miss", "hit", "hit"]
    assert first.text.count("data: {") >= again.text.count("data: {") > 0
    assert streamed(first) == streamed(again) == whole.json()["choices"][0]["message"]["content"]
    assert again.text.rstrip().endswith("data: [DONE]")


def test_equal_requests_at_once_are_computed_once(
    kept: Serving, http: httpx.Client, seen: list[Event]
) -> None:
    with kept.knobs(max_active=1), ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: http.post(CHAT, json=CERTAIN), range(4)))
    assert sorted(str(told(answer)) for answer in answers) == ["hit", "hit", "hit", "miss"]
    assert all(said(answer) == said(answers[0]) for answer in answers)
    assert computed(seen) == 1
    assert sum(isinstance(event, CacheLooked) and event.hit for event in seen) == 3


@pytest.mark.parametrize(
    "other",
    [{"max_tokens": 13}, {"seed": 1}, {"presence_penalty": 1.0}, {"stop": ["q"]},
     {"tenant": "b"}, {"min_tokens": 2}, {"logit_bias": {"5": 3}},
     {"messages": [{"role": "user", "content": "Hi"}]}],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_what_differs_in_anything_is_another_request(
    http: httpx.Client, other: dict[str, Any]
) -> None:
    assert told(http.post(CHAT, json=CERTAIN)) == "miss"
    assert told(http.post(CHAT, json={**CERTAIN, **other})) == "miss"


def test_chance_is_never_kept_and_no_store_goes_round_it(http: httpx.Client) -> None:
    for _ in range(2):
        assert told(http.post(CHAT, json={**CERTAIN, "temperature": 1})) is None
    assert told(http.post(CHAT, json=CERTAIN)) == "miss"
    anew = http.post(CHAT, json=CERTAIN, headers={"Cache-Control": "no-store"})
    assert told(anew) is None
    assert told(http.post(CHAT, json=CERTAIN)) == "hit"


def test_a_hit_counts_against_its_tenants_rate(kept: Serving, http: httpx.Client) -> None:
    mine = {**CERTAIN, "tenant": "rated, with kept replies"}
    with kept.knobs(rate_limit_rps=0.001, rate_burst=2):
        assert [told(http.post(CHAT, json=mine)) for _ in range(2)] == ["miss", "hit"]
        assert http.post(CHAT, json=mine).status_code == 429
