"""What only a GPU can show."""

from __future__ import annotations

import pytest

import llmserve
from llmserve.entrypoints.session.shutdown_report import device_used
from support.small_vllm import OPTIONS


@pytest.mark.gpu
def test_asleep_on_a_gpu_its_memory_is_free_and_awake_it_says_the_same() -> None:
    options = OPTIONS | {"enable_sleep_mode": True, "enforce_eager": True}
    with llmserve.serve(engine="vllm", **options) as session:
        before = session.generate("hello", max_tokens=8, temperature=0.0)
        pids = session.service.pids
        for level in (1, 2):
            held = device_used()
            assert f"sleeps at level {level}" in session.sleep(level)
            asleep = device_used()
            assert held is not None
            assert asleep is not None
            assert asleep < held - OPTIONS["kv_cache_memory_bytes"] / 2
            session.wake()
            assert session.generate("hello", max_tokens=8, temperature=0.0) == before
        assert session.service.pids == pids, "it was restarted, not woken"
