"""A client that leaves, at any moment, stops its work; its place is free for who comes next."""

from __future__ import annotations

import json
from contextlib import closing

import httpx
import pytest

from llmserve.core.events import Dispatched, Finished, FirstToken, Submitted, WaitReasonChanged
from llmserve.core.types import StepRecord
from support.serving import MESSAGES, Serving

CHAT = "/v1/chat/completions"


def steps_of(server: Serving, request_id: str) -> list[StepRecord]:
    return [
        record
        for record in server.telemetry.steps.records()
        if any(row.request_id == request_id for row in record.rows)
    ]


def next_steps(server: Serving, http: httpx.Client) -> list[StepRecord]:
    """Those that the engine takes for somebody who comes now: a ghost would show in them.

    The engine hears in order: of who has left before it hears of this one.
    """
    body = {"messages": MESSAGES, "max_tokens": 4, "ignore_eos": True}
    answer = http.post(CHAT, json=body).json()
    assert answer["usage"]["completion_tokens"] == 4
    first = steps_of(server, answer["id"])[0].index
    return server.telemetry.steps.records(since=first - 1)


def assert_gone(server: Serving, http: httpx.Client, *gone: Finished) -> None:
    assert {one.reason for one in gone} == {"abort"}
    assert max(one.completion_tokens for one in gone) < 1000
    after = next_steps(server, http)
    assert len({row.request_id for step in after for row in step.rows}) == 1, "a ghost is computed"
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
    assert_gone(server, http, *gone)


@pytest.mark.parametrize("streaming", [True, False])
def test_leaving_while_queued_frees_the_place(
    server: Serving, http: httpx.Client, streaming: bool
) -> None:
    with server.knobs(max_active=1), server.tail() as tail:
        with closing(server.post_and_hold(CHAT, server.long_body(stream=True))):
            first = tail.wait(Dispatched)
            with closing(server.post_and_hold(CHAT, server.long_body(stream=streaming))):
                queued = tail.wait(WaitReasonChanged, lambda e: e.request_id != first.request_id)
            gone = tail.wait(Finished)
            assert gone.request_id == queued.request_id, "the one that runs must go on"
            assert gone.reason == "abort"
            assert server.telemetry.snapshot().waiting == 0
        tail.wait(Finished, lambda e: e.request_id == first.request_id)
        next_steps(server, http)
    assert steps_of(server, queued.request_id) == []


def test_others_go_on_undisturbed_when_one_leaves(server: Serving, http: httpx.Client) -> None:
    body = {"messages": MESSAGES, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    alone = http.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
    with server.tail() as tail:
        leaver = server.post_and_hold(CHAT, server.long_body(stream=True))
        left = tail.wait(FirstToken).request_id
        with http.stream("POST", CHAT, json={**body, "stream": True}) as answer:
            told = []
            for line in answer.iter_lines():
                leaver.close()  # at the first line; again does nothing
                if line.startswith("data: {"):
                    choice = json.loads(line.removeprefix("data: "))["choices"][0]
                    told.append(choice["delta"].get("content", ""))
        assert tail.wait(Finished, lambda e: e.request_id == left).reason == "abort"
    assert "".join(told) == alone
