"""One real vLLM for the whole run. `make vllm-test` runs these in .venv-vllm, where vLLM is; the
ordinary venv has none and does not collect them, and a run of this folder alone then fails with
pytest's "no tests collected" instead of passing."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

import llmserve
from llmserve.session import Session
from support.small_vllm import OPTIONS

TOOLS: dict[str, Any] = {"enable_auto_tool_choice": True, "tool_call_parser": "xlam"}
HERE = os.path.dirname(__file__)

def _has_vllm() -> bool:
    found = importlib.util.find_spec("vllm")
    return found is not None and found.origin is not None  # else it is this very folder


collect_ignore_glob = [] if _has_vllm() else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vllm: starts a real vLLM; runs in .venv-vllm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if str(item.path).startswith(HERE):
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(500))  # a start takes a minute, or two
            for kind in ("DeprecationWarning", "FutureWarning", "UserWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}"))  # vLLM's own


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> Iterator[None]:
    """vLLM binds its threads to fixed cores, where other processes may be busy too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def shared(few_threads: None) -> Iterator[Session]:
    with llmserve.serve(engine="vllm", max_active=64, **TOOLS, **OPTIONS) as running:
        yield running


@pytest.fixture
def session(shared: Session) -> Iterator[Session]:
    """With the same knobs and an empty prefix cache for every test."""
    shared.set(max_num_seqs=32, max_num_batched_tokens=1024, long_prefill_token_threshold=0)
    shared.set(max_active=64, policy="fifo")
    engine: Any = shared.service.engine
    shared.runtime.call(engine.reset_cache())
    yield shared
    until = time.monotonic() + 20
    while shared.stats().running:  # a client that left is noticed a moment later
        assert time.monotonic() < until, "the test left requests running"
        time.sleep(0.02)
