"""One server per engine and test process: the same tests against every engine there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import httpx
import openai
import pytest

from llmserve.core.knobs import Knobs
from llmserve.entrypoints.session.session import Session
from support.serving import Serving, serving
from support.shared_vllm import has_vllm, mark
from support.vllm_differs import BY_CHANCE, difference

FAST = {"prefill_ms": 2.0, "decode_ms": 2.0, "max_model_len": 2048}
ENGINES: dict[str, dict[str, Any]] = {
    "simulator": {"engine": "simulator", **FAST},
    "simulator-process": {"engine": "simulator", "process": True, **FAST},
    "torch": {"engine": "torch"},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        told = getattr(item, "callspec", None)
        if told is not None and told.params.get("server") == "vllm":
            mark(item)
            if (why := difference(item.nodeid)) is not None:
                strict = why not in BY_CHANCE
                item.add_marker(pytest.mark.xfail(reason=why, strict=strict))


@pytest.fixture(scope="session")
def started() -> Iterator[Callable[[str], Serving]]:
    """Servers by their engine's name, each started when it is first asked for. A parametrized
    fixture of the session would stop one to start the other, file by file."""
    with ExitStack() as stack:

        @cache
        def start(engine: str) -> Serving:
            return stack.enter_context(serving(**ENGINES[engine]))

        yield start


@pytest.fixture(scope="session")
def vllm_server(shared: Session) -> Serving:
    return _of_session(shared)


@pytest.fixture(params=[*ENGINES, *(["vllm"] if has_vllm() else [])])
def server(request: pytest.FixtureRequest, started: Callable[[str], Serving]) -> Serving:
    if request.param == "vllm":
        served: Serving = request.getfixturevalue("vllm_server")
        return served
    return started(request.param)


def _of_session(session: Session) -> Serving:
    session.runtime.call(session.service.set_knobs(Knobs().as_dict()))
    return Serving(
        session.service, session.telemetry, session.runtime, session._resources._server, session.bus
    )


@pytest.fixture
def own() -> Iterator[Serving]:
    """Of the test's own: to stop it, put it to sleep or count its connections."""
    with serving("simulator", prefill_ms=1.0, decode_ms=2.0) as made:
        yield made


@pytest.fixture
def client(server: Serving) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


@pytest.fixture
def http(server: Serving) -> Iterator[httpx.Client]:
    with server.http() as made:
        yield made
