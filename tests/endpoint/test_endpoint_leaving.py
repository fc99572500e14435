"""A client that leaves, at any moment, stops its work; its place is free within one step."""

from __future__ import annotations

import json
import time
from contextlib import closing

import httpx
import pytest

from llmserve.core import StepRecord
from llmserve.events import Dispatched, Finished, FirstToken, Held, Submitted
from support.serving import MESSAGES, Serving

CHAT = "/v1/chat/completions"
WAY_S = 0.05
"""What the word of it may take to the engine's process: steps of a tiny model are shorter."""


def steps_of(server: Serving, request_id: str) -> list[StepRecord]:
    return [
        record
        for record in server.telemetry.steps.records()
        if any(row.request_id == request_id for row in record.rows)
    ]


def answer_something(http: httpx.Client) -> None:
    """Makes the engine take more steps, so that a ghost would show in them."""
    time.sleep(WAY_S)
    body = {"messages": MESSAGES, "max_tokens": 4, "ignore_eos": True}
    assert http.post(CHAT, json=body).json()["usage"]["completion_tokens"] == 4


def assert_gone(server: Serving, http: httpx.Client, gone: Finished) -> None:
    assert gone.reason == "abort"
    assert gone.completion_tokens < 1000
    answer_something(http)
    late = [step for step in steps_of(server, gone.request_id) if step.start_s > gone.t]
    told = gone.t + WAY_S
    assert all(step.start_s < told for step in late[1:]), "it was computed after its client left"
    after = [step for step in server.telemetry.steps.records() if step.start_s > told][1:]
    assert after
    assert max(step.running for step in after) <= 1, "its KV was not given back"
    assert server.telemetry.snapshot().running == 0


@pytest.mark.parametrize("streaming", [True, False])
def test_leaving_mid_reply_frees_the_place(
    server: Serving, http: httpx.Client, streaming: bool
) -> None:
    with server.tail() as tail:
        with closing(server.post_and_hold(CHAT, server.long_body(stream=streaming))):
            submitted = tail.wait(Submitted)
            tail.wait(FirstToken, lambda e: e.request_id == submitted.request_id)
        gone = tail.wait(Finished, lambda e: e.request_id == submitted.request_id)
    assert_gone(server, http, gone)


def test_leaving_a_stream_that_was_read_frees_the_place(
    server: Serving, http: httpx.Client
) -> None:
    with server.tail() as tail:
        with http.stream("POST", CHAT, json=server.long_body(stream=True)) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-cache"
            lines = (line for line in answer.iter_lines() if line)
            first = json.loads(next(lines).removeprefix("data: "))
            next(lines)
        gone = tail.wait(Finished, lambda e: e.request_id == first["id"])
    assert_gone(server, http, gone)


def test_leaving_frees_the_places_of_all_n_choices(server: Serving, http: httpx.Client) -> None:
    body = {**server.long_body(stream=True), "n": 3}
    with server.tail() as tail:
        with closing(server.post_and_hold(CHAT, body)):
            for _ in range(3):
                tail.wait(FirstToken)
        gone = [tail.wait(Finished) for _ in range(3)]
    assert len({e.request_id for e in gone}) == 3
    assert_gone(server, http, gone[-1])


@pytest.mark.parametrize("streaming", [True, False])
def test_leaving_while_queued_frees_the_place(
    server: Serving, http: httpx.Client, streaming: bool
) -> None:
    with server.knobs(max_active=1), server.tail() as tail:
        with closing(server.post_and_hold(CHAT, server.long_body(stream=True))):
            first = tail.wait(Dispatched)
            with closing(server.post_and_hold(CHAT, server.long_body(stream=streaming))):
                queued = tail.wait(Held, lambda e: e.request_id != first.request_id)
            gone = tail.wait(Finished)
            assert gone.request_id == queued.request_id, "the one that runs must go on"
            assert gone.reason == "abort"
            assert server.telemetry.snapshot().waiting == 0
        tail.wait(Finished, lambda e: e.request_id == first.request_id)
        answer_something(http)
    assert steps_of(server, queued.request_id) == []


def test_others_go_on_undisturbed_when_one_leaves(server: Serving, http: httpx.Client) -> None:
    body = {"messages": MESSAGES, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    alone = http.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
    with server.tail() as tail:
        leaver = server.post_and_hold(CHAT, server.long_body(stream=True))
        tail.wait(FirstToken)
        with http.stream("POST", CHAT, json={**body, "stream": True}) as answer:
            told = []
            for line in answer.iter_lines():
                leaver.close()  # at the first line; again does nothing
                if line.startswith("data: {"):
                    choice = json.loads(line.removeprefix("data: "))["choices"][0]
                    told.append(choice["delta"].get("content", ""))
    assert "".join(told) == alone
