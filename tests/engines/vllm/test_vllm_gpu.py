"""What only a GPU shows: asynchronous scheduling, and device memory that comes back."""

from __future__ import annotations

import asyncio

import pytest

import llmserve
from llmserve.core import Outcome
from support.crowd import Watcher, collect_all, crowd
from support.small_vllm import OPTIONS

pytestmark = pytest.mark.gpu


def test_steps_in_flight_together_are_told_each_once_and_memory_comes_back() -> None:
    """vLLM plans a step before the last one has ended; knobs and the tape must bear it."""
    options = OPTIONS | {"dtype": "bfloat16"}
    with llmserve.serve(engine="vllm", max_active=64, **options) as session:
        assert session.info.device == "cuda"
        assert session.info.details["scheduling"] == "async"

        async def lower(watcher: Watcher) -> None:
            await watcher.when(lambda step: step.running == 32)
            await session.service.set_knobs({"max_num_seqs": 8})
            await watcher.when(lambda step: step.running <= 8)
            await session.service.set_knobs({"max_num_seqs": 32})

        async def both(watcher: Watcher) -> list[Outcome]:
            lowering = asyncio.create_task(lower(watcher))
            outcomes = await collect_all(session, crowd(session, 64, tag="gpu"))
            await lowering
            return outcomes

        with Watcher(session) as watcher:
            outcomes = session.runtime.call(both(watcher))
        assert [one.finish_reason for one in outcomes] == ["length"] * 64
        assert session.telemetry.steps.missing == 0
        indices = [step.index for step in watcher.steps]
        assert indices == list(range(indices[0], indices[0] + len(indices)))
        computed = dict.fromkeys((f"gpu-{n}" for n in range(64)), 0)
        for step in watcher.steps:
            for row in step.rows:
                computed[row.request_id] += row.tokens
        for number, outcome in enumerate(outcomes):
            written = outcome.usage.prompt_tokens + len(outcome.token_ids) - 1
            told = computed[f"gpu-{number}"]
            # a step that was planned ahead may hold a token after the last
            assert written <= told + outcome.usage.cached_tokens <= written + 1
    freed = session.close()
    assert not freed.left
    assert freed.gpu_bytes
