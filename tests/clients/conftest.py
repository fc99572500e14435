"""Clients as they are installed, against servers that nobody made easier for them.

`make clients` runs these in .venv-clients, which has the clients and not llmserve; any other
environment collects none of them.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from clients.endpoint import Endpoint, serving

collect_ignore_glob = [] if importlib.util.find_spec("litellm") else ["test_*.py"]
if not collect_ignore_glob:
    # no client asks anybody but the endpoint
    os.environ.update(
        {
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_TELEMETRY": "False",
            "LANGSMITH_TRACING": "false",
            "OPENAI_AGENTS_DISABLE_TRACING": "1",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(os.path.dirname(__file__)):
            item.add_marker(pytest.mark.clients)


NOTES = pytest.StashKey[list[str]]()


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Says at the end of the run what a test found that is more than passed or failed."""
    return request.config.stash.setdefault(NOTES, []).append


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if notes := config.stash.get(NOTES, []):
        terminalreporter.section("found")
        for line in notes:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def started() -> Iterator[Callable[[str], Endpoint]]:
    """Servers by their engine's name, each started when it is first asked for."""
    with ExitStack() as stack:

        @cache
        def start(engine: str) -> Endpoint:
            return stack.enter_context(serving(engine))

        yield start


@pytest.fixture
def torch(started: Callable[[str], Endpoint]) -> Endpoint:
    return started("torch")


@pytest.fixture
def simulator(started: Callable[[str], Endpoint]) -> Endpoint:
    return started("simulator")


@pytest.fixture(params=["torch", "simulator"])
def endpoint(request: pytest.FixtureRequest, started: Callable[[str], Endpoint]) -> Endpoint:
    return started(request.param)
