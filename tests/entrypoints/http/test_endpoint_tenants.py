"""Tenants' keys and the reply cache over HTTP: whose request it is, and where a key leads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from llmserve.bench.load.workload import Workload
from llmserve.bench.run.client import Client
from llmserve.bench.run.driver import Bench
from llmserve.bench.run.http_target import HttpTarget
from llmserve.core.clock import MonotonicClock
from llmserve.core.events import Finished, Submitted
from llmserve.entrypoints.http.response_cache import CacheOptions
from llmserve.serving.api_keys import read_key_terms
from support.serving import KEY, MESSAGES, Serving, serving

GOLD = "sk-gold-0123456789"
ASK: dict[str, object] = {"messages": MESSAGES, "max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def house() -> Iterator[Serving]:
    key_terms = read_key_terms({"gold": {"key": GOLD, "max_active": 1, "ttft_slo_ms": 321}})
    options: dict[str, Any] = {"prefill_ms": 1.0, "decode_ms": 1.0}
    with serving("simulator", key_terms=key_terms, cache=CacheOptions(), **options) as served:
        yield served


def test_a_tenants_key_says_whose_request_it_is_whatever_is_claimed(house: Serving) -> None:
    with house.tail() as tail, house.http(GOLD) as http:
        body = {**ASK, "tenant": "other", "seed": 11}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
        assert tail.wait(Submitted).tenant == "gold"
        headers = {"X-Tenant": "other"}
        answer = http.post("/v1/chat/completions", json={**ASK, "seed": 12}, headers=headers)
        assert answer.status_code == 200
        assert tail.wait(Submitted).tenant == "gold"


def test_the_sessions_own_key_may_name_any_tenant(house: Serving) -> None:
    with house.tail() as tail, house.http(KEY) as http:
        http.post("/v1/chat/completions", json={**ASK, "tenant": "other", "seed": 13})
        assert tail.wait(Submitted).tenant == "other"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 200), ("GET", "/metrics", 403), ("GET", "/llmserve/knobs", 403),
        ("PATCH", "/llmserve/knobs", 403), ("GET", "/llmserve/requests", 403),
        ("GET", "/nowhere", 403), ("GET", "/health", 200),
    ],
)  # fmt: skip
def test_a_tenants_key_leads_to_the_model_and_not_to_the_controls(
    house: Serving, method: str, path: str, status: int
) -> None:
    with house.http(GOLD) as http:
        assert http.request(method, path).status_code == status


def test_an_unknown_key_is_401(house: Serving) -> None:
    with house.http(GOLD + "x") as http:
        assert http.get("/v1/models").status_code == 401


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_says_whether_its_reply_was_here(house: Serving, stream: bool) -> None:
    body = {**ASK, "seed": 100 + stream, "stream": stream}
    with house.http() as http:
        first, second = (http.post("/v1/chat/completions", json=body) for _ in range(2))
        assert first.headers["x-llmserve-cache"] == "miss"
        assert second.headers["x-llmserve-cache"] == "hit"
        if not stream:
            assert first.json()["choices"] == second.json()["choices"]
            assert first.json()["usage"] == second.json()["usage"]
        drawn = http.post("/v1/chat/completions", json={**ASK, "temperature": 1})
        assert "x-llmserve-cache" not in drawn.headers
        metrics = http.get("/metrics").text
    assert 'result="hit"' in metrics


def test_each_tenant_has_replies_of_its_own(house: Serving) -> None:
    body = {**ASK, "seed": 400}
    with house.http() as own, house.http(GOLD) as gold:
        asked = [own, own, gold, gold]
        answers = [http.post("/v1/chat/completions", json=body) for http in asked]
    found = [answer.headers["x-llmserve-cache"] for answer in answers]
    assert found == ["miss", "hit", "miss", "hit"]


@pytest.mark.parametrize("told", ["no-store", "No-Cache", "max-age=0, no-cache"])
def test_cache_control_asks_for_a_reply_that_was_not_kept(house: Serving, told: str) -> None:
    with house.http() as http:
        for _ in range(2):
            answer = http.post(
                "/v1/chat/completions", json={**ASK, "seed": 500}, headers={"Cache-Control": told}
            )
            assert answer.status_code == 200
            assert "x-llmserve-cache" not in answer.headers


def test_a_bench_over_http_is_given_no_kept_reply(house: Serving) -> None:
    load = Workload(concurrency=1, requests=4, prompt_tokens=8, max_tokens=3, same_prompts=True)

    async def bench() -> None:
        async with aclosing(Client(f"{house.root}/v1", KEY)) as client:
            tokenizer = house.service.engine.tokenizer
            target = HttpTarget(client, house.model, MonotonicClock(), tokenizer)
            for _ in range(2):
                assert (await Bench(target, load).run()).n == 4

    with house.tail() as tail:
        asyncio.run(bench())
        for _ in range(8):
            tail.wait(Submitted)


def test_equal_choices_of_one_request_are_computed_once(house: Serving) -> None:
    with house.tail() as tail, house.http() as http:
        body = {**ASK, "n": 3, "temperature": 0, "max_tokens": 4}
        answer = http.post("/v1/chat/completions", json=body).json()
        assert len({choice["message"]["content"] for choice in answer["choices"]}) == 1
        assert answer["usage"]["completion_tokens"] == 12
        assert tail.wait(Finished).completion_tokens == 4


def test_the_knobs_say_that_weights_are_text(house: Serving) -> None:
    with house.http() as http:
        told = http.get("/llmserve/knobs").json()["knobs"]["tenant_weights"]
        assert (told["type"], told["value"], told["unit"]) == ("text", "", "name:weight,…")
        change = http.patch("/llmserve/knobs", json={"tenant_weights": {"gold": 3}})
        assert change.json()["changed"] == {"tenant_weights": ["", "gold:3"]}
        wrong = http.patch("/llmserve/knobs", json={"tenant_weights": "gold"})
        assert wrong.json()["error"]["param"] == "tenant_weights"
