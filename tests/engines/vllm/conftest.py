"""A real vLLM: the shared one of the whole run, and a few more that tests break on purpose.

Files named `test_vllm_*.py` want it, and run where it is installed. The others run everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmserve.entrypoints.session.session import Session
from support.shared_vllm import has_vllm, mark

HERE = Path(__file__).parent
QUIET_S = 60.0
"""How long the engine may take to notice that a client left, on a machine that is busy."""

WANT_VLLM = "test_vllm_*.py"
collect_ignore_glob = [] if has_vllm() else [WANT_VLLM]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE and item.path.match(WANT_VLLM):
            mark(item)


@pytest.fixture(scope="session", autouse=has_vllm())
def _few_threads(few_threads: None) -> None:
    """For those engines too that a test starts for itself."""


@pytest.fixture
def session(shared: Session) -> Iterator[Session]:
    """With the same knobs and an empty prefix cache for every test."""
    shared.set(max_num_seqs=32, max_num_batched_tokens=1024, long_prefill_token_threshold=0)
    shared.set(max_active=64, policy="fifo")
    engine: Any = shared.service.engine
    shared.runtime.call(engine.reset_cache())
    yield shared
    until = time.monotonic() + QUIET_S
    while shared.stats().running:  # a client that left is noticed a moment later
        assert time.monotonic() < until, "the test left requests running"
        time.sleep(0.02)
