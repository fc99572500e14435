"""One real vLLM for the whole run, wherever a test wants it; pytest loads this as a plugin.

`make vllm-test` runs what is marked `vllm` in .venv-vllm, where vLLM is. The ordinary venv has none
and collects none of it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

import llmserve
from llmserve.entrypoints.session.session import Session
from support.serving import KEY
from support.small_vllm import OPTIONS

TOOLS: dict[str, Any] = {"enable_auto_tool_choice": True, "tool_call_parser": "xlam"}


def has_vllm() -> bool:
    found = importlib.util.find_spec("vllm")
    return found is not None and found.origin is not None  # else it is a folder of that name


def mark(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.vllm)
    item.add_marker(pytest.mark.timeout(500))  # a start takes a minute, or three
    for kind in ("DeprecationWarning", "FutureWarning", "UserWarning"):
        item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}"))  # vLLM's own


@pytest.fixture(scope="session")
def few_threads() -> Iterator[None]:
    """vLLM binds its threads to fixed cores, where other processes may be busy too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def shared(few_threads: None) -> Iterator[Session]:
    options = OPTIONS | TOOLS | {"max_model_len": 2048}
    with llmserve.serve(engine="vllm", max_active=64, api_key=KEY, **options) as running:
        yield running
