"""One server per engine for the whole run: the same tests against every engine there is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from llmserve.core.knobs import Knobs
from llmserve.entrypoints.session.session import Session
from support.serving import Serving, serving
from support.shared_vllm import has_vllm, mark
from support.vllm_differs import difference

ENGINES: dict[str, dict[str, Any]] = {
    "simulator": {"prefill_ms": 2.0, "decode_ms": 2.0, "max_model_len": 2048},
    "torch": {},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        told = getattr(item, "callspec", None)
        if told is not None and told.params.get("server") == "vllm":
            mark(item)
            if (why := difference(item.nodeid)) is not None:
                item.add_marker(pytest.mark.xfail(reason=why, strict=True))


@pytest.fixture(scope="session", params=[*ENGINES, *(["vllm"] if has_vllm() else [])])
def server(request: pytest.FixtureRequest) -> Iterator[Serving]:
    if request.param == "vllm":
        yield _of_session(request.getfixturevalue("shared"))
        return
    with serving(request.param, **ENGINES[request.param]) as served:
        yield served


def _of_session(session: Session) -> Serving:
    session.runtime.call(session.service.set_knobs(Knobs().as_dict()))
    return Serving(
        session.service, session.telemetry, session.runtime, session._house._server, session.bus
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
