"""Sleep, wake and restart over HTTP: who comes meanwhile waits, and is served."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from llmserve.core.events import Submitted
from support.serving import MESSAGES, PATIENCE_S, Serving

BODY = {"messages": MESSAGES, "max_tokens": 3, "ignore_eos": True}


def post(own: Serving, path: str, body: Any = None, status: int = 200) -> Any:
    with own.http() as http:
        answer = http.post(path, json=body) if body is not None else http.post(path)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_a_request_that_comes_while_it_sleeps_is_served_after_waking(own: Serving) -> None:
    told = post(own, "/llmserve/sleep", {"level": 1, "drain_s": 1})
    assert told["state"] == "asleep"
    assert "stopped instead" in told["message"]
    answers: list[Any] = []
    with own.tail() as tail:
        asking = threading.Thread(
            target=lambda: answers.append(post(own, "/v1/chat/completions", BODY))
        )
        asking.start()
        tail.wait(Submitted)
    with own.http() as http:
        health = http.get("/health")
    assert health.status_code == 503
    assert "sleeps" in health.json()["error"]["message"]
    assert answers == []
    assert post(own, "/llmserve/wake")["state"] == "up"
    asking.join(PATIENCE_S)
    assert answers[0]["usage"]["completion_tokens"] == 3


def test_a_restart_answers_when_the_engine_serves_again(own: Serving) -> None:
    assert post(own, "/llmserve/restart", {"drain_s": 0})["state"] == "up"
    assert post(own, "/v1/chat/completions", BODY)["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("body", [{"level": 3}, {"level": "deep"}, {"lvl": 1}, []])
def test_a_wrong_wish_is_400_and_changes_nothing(own: Serving, body: Any) -> None:
    error = post(own, "/llmserve/sleep", body, status=400)["error"]
    assert error["type"] == "invalid_request_error"
    assert own.service.ready


def test_evicting_is_told_what_it_needs_where_the_engine_cannot(own: Serving) -> None:
    with own.http() as http:
        for value, says in ((True, "cannot preempt"), ("now", "true or false")):
            change = {"max_num_seqs": 4, "evict": value}
            answer: httpx.Response = http.patch("/llmserve/knobs", json=change)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "evict"
            assert says in answer.json()["error"]["message"]
        assert own.service.board.current.max_num_seqs == 32
        allowed = http.patch("/llmserve/knobs", json={"max_num_seqs": 4, "evict": False})
    assert allowed.json()["evicted"] == []


def test_a_tenants_key_does_not_lead_there(own: Serving) -> None:
    with own.http("sk-wrong") as http:
        assert http.post("/llmserve/sleep").status_code == 401
    assert own.service.ready
