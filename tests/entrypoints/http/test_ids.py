"""Ids of answers and of requests: no other server and no other start gives the same one."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from llmserve.core.clock import MonotonicClock
from llmserve.core.events import Event, EventBus, Submitted
from llmserve.core.knobs import KnobBoard
from llmserve.engines.simulator.engine import SimulatorEngine
from llmserve.serving.service import Service
from support.serving import MESSAGES, Serving, serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
OURS = re.compile(r"(chatcmpl|cmpl)-[0-9a-f]{12}-\d+")
ROUNDS = 8


def ask_much(served: Serving) -> list[str]:
    """The ids of many answers at once, and then those of their requests."""
    seen: list[Event] = []
    served.bus.attach(seen.append)
    bodies: list[tuple[str, dict[str, object]]] = [
        (CHAT, {"messages": MESSAGES, "max_tokens": 1}),
        (CHAT, {"messages": MESSAGES, "max_tokens": 1, "n": 3}),
        (COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 1, "n": 2}),
    ] * ROUNDS
    with served.http() as http, ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(lambda each: http.post(each[0], json=each[1]).json(), bodies)]
    served.bus.detach(seen.append)
    requests = [event.request_id for event in seen if isinstance(event, Submitted)]
    assert len(requests) == ROUNDS * (1 + 3 + 4)
    ids = [answer["id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert len(set(requests)) == len(requests)
    return [*ids, *{*requests} - {*ids}]


def test_no_id_comes_twice_on_two_servers_and_two_starts() -> None:
    found: list[str] = []
    options: dict[str, Any] = {"prefill_ms": 0.1, "decode_ms": 0.1}
    for _ in range(2):
        with serving("simulator", **options) as one, serving("simulator", **options) as two:
            found += ask_much(one)
            one.runtime.call(one.service.supervisor.restart(0.0))
            found += ask_much(one) + ask_much(two)
    assert len(set(found)) == len(found) == 6 * ROUNDS * (3 + 3 + 4)
    assert all(OURS.match(each) for each in found)


def test_ids_of_one_start_differ_in_a_number_that_counts() -> None:
    clock = MonotonicClock()
    engine = SimulatorEngine(sink=lambda record: None, clock=clock)
    services = [Service(engine, KnobBoard(), EventBus(), clock) for _ in range(200)]
    ids = [service.new_id("cell") for service in services for _ in range(5)]
    assert len(set(ids)) == 1000
    starts = {each.rpartition("-")[0] for each in ids}
    assert len(starts) == 200
    assert [each.rpartition("-")[2] for each in ids] == ["1", "2", "3", "4", "5"] * 200


def test_all_frames_of_a_stream_carry_the_id_of_its_request(
    server: Serving, http: httpx.Client
) -> None:
    body = {"messages": MESSAGES, "max_tokens": 4, "stream": True}
    with server.tail() as tail:
        frames = http.post(CHAT, json=body).text
        request = tail.wait(Submitted).request_id
    assert set(re.findall(r'"id": ?"([^"]+)"', frames)) == {request}
