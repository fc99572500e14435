"""One server per engine for the whole run: the same tests against every engine there is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from support.serving import Serving, serving

ENGINES: dict[str, dict[str, Any]] = {
    "simulator": {"prefill_ms": 2.0, "decode_ms": 2.0, "max_model_len": 2048},
    "torch": {},
}


@pytest.fixture(scope="session", params=ENGINES)
def server(request: pytest.FixtureRequest) -> Iterator[Serving]:
    with serving(request.param, **ENGINES[request.param]) as served:
        yield served


@pytest.fixture
def client(server: Serving) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


@pytest.fixture
def http(server: Serving) -> Iterator[httpx.Client]:
    with server.http() as made:
        yield made
