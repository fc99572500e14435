"""Binding and stopping: errors in the caller, the port given back whatever clients do."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import socket
import threading
from typing import Any

import httpx
import pytest

from llmserve.core.events import FirstToken
from llmserve.core.validation import shown
from llmserve.entrypoints.http.server import HttpServer, bind
from support.serving import MESSAGES, PATIENCE_S, Serving, serving

CHAT = "/v1/chat/completions"


def stop(own: Serving) -> None:
    """Two seconds are the promise; the rest is for a loaded machine. A hang is what fails."""
    own.runtime.call(own.server.stop(), PATIENCE_S)


async def tasks() -> set[asyncio.Task[object]]:
    """All that the loop has to do, but this."""
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def test_a_taken_port_is_told_in_the_caller_with_its_number() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} on 127.0.0.1 is taken") as caught:
            bind("127.0.0.1", port)
    assert caught.value.errno == errno.EADDRINUSE


def test_a_host_that_cannot_be_is_an_oserror_that_names_it() -> None:
    with pytest.raises(OSError, match=r"no\.such\.invalid port 0"):
        bind("no.such.invalid", 0)


@pytest.mark.parametrize("port", [70000, -1, 10**5000, 80.5, float("nan"), True, None], ids=shown)
def test_a_port_that_cannot_be_is_told(port: Any) -> None:
    with pytest.raises(ValueError, match=r"port (must be within|takes a whole number)"):
        bind("127.0.0.1", port)


def test_a_small_write_never_waits_for_the_clients_acknowledgement() -> None:
    """Where Nagle's algorithm is on, a first token waits 40 ms behind the reply's head."""
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_stop_before_start_gives_the_port_back() -> None:
    sock = bind("127.0.0.1", 0)
    server = HttpServer(_no_app, sock)
    asyncio.run(server.stop())
    bind("127.0.0.1", server.port).close()


async def _no_app(scope: object, receive: object, send: object) -> None:
    raise AssertionError("nobody calls")


def test_stop_gives_back_port_connections_and_tasks(own: Serving) -> None:
    before = own.runtime.call(tasks())
    assert any("serve" in repr(task) for task in before), "the server's own task is among them"
    with own.http() as idle, own.http() as busy, own.tail() as tail:
        idle.get("/health")
        silent = own.post_and_hold(CHAT, own.long_body(stream=True))  # reads nothing, ever
        with busy.stream("POST", CHAT, json=own.long_body(stream=True)) as answer:
            for _ in range(2):
                tail.wait(FirstToken)
            stop(own)
            *_, error, done = [line for line in answer.iter_lines() if line]
        silent.close()
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "stopping"
    assert done == "data: [DONE]"
    assert own.telemetry.snapshot().running == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", own.server.port), timeout=5)
    assert own.runtime.call(tasks()) <= before
    stop(own)  # twice is safe
    bind("127.0.0.1", own.server.port).close()


def test_a_whole_answer_in_flight_at_stop_is_503(own: Serving) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        with own.http() as http:
            answers.append(http.post(CHAT, json=own.long_body(stream=False)))

    with own.tail() as tail:
        thread = threading.Thread(target=ask)
        thread.start()
        tail.wait(FirstToken)
        stop(own)
        thread.join()
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "stopping"


def test_a_stopped_service_answers_503_before_the_server_goes(own: Serving) -> None:
    with own.http() as http, own.tail() as tail:
        with http.stream("POST", CHAT, json=own.long_body(stream=True)) as answer:
            tail.wait(FirstToken)
            own.runtime.call(own.service.stop())
            *_, error, done = [line for line in answer.iter_lines() if line]
        refused = http.post(CHAT, json={"messages": MESSAGES})
    assert json.loads(error.removeprefix("data: "))["error"]["type"] == "service_unavailable_error"
    assert done == "data: [DONE]"
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "stopping"


def test_before_the_model_is_there_routes_say_503_and_come_back_later() -> None:
    with serving("simulator") as own:
        own.service.supervisor.state = "new"  # as while a session is opening
        with own.http() as http:
            for answer in (
                http.get("/health"), http.get("/v1/models"), http.get("/llmserve/knobs"),
                http.post(CHAT, json={"messages": MESSAGES}),
            ):  # fmt: skip
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "not_ready"
                assert int(answer.headers["retry-after"]) >= 1


def test_signals_stay_the_callers() -> None:
    """On the main thread too, where uvicorn would take them."""

    async def while_serving() -> object:
        server = HttpServer(_no_app, bind("127.0.0.1", 0))
        await server.start()
        handler = signal.getsignal(signal.SIGTERM)
        await server.stop()
        return handler

    assert threading.current_thread() is threading.main_thread()
    assert asyncio.run(while_serving()) == signal.getsignal(signal.SIGTERM)
