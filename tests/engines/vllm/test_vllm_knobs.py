"""Knobs of a vLLM that is under load: taken up at a step that is told, with nobody harmed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from llmserve.core.events import KnobsChanged, KnobsSatisfied
from llmserve.core.knobs import Applied
from llmserve.core.types import Request, SamplingParams, StepRecord
from llmserve.entrypoints.session.session import Session
from support.crowd import Watcher, collect_all, crowd


@pytest.fixture(scope="module")
def undisturbed(shared: Session) -> list[tuple[int, ...]]:
    """What the crowd says when nobody turns a knob."""
    outcomes = shared.runtime.call(collect_all(shared, crowd(shared, 64, tag="calm")))
    texts = [outcome.token_ids for outcome in outcomes]
    assert len(set(texts)) > 32, "the model says the same to everyone: equality would show nothing"
    return texts


def test_knobs_turned_under_load_harm_no_request(
    session: Session, undisturbed: list[tuple[int, ...]], record_property: Any
) -> None:
    async def turn(watcher: Watcher) -> list[Applied]:
        applied = []

        async def change(**knobs: object) -> None:
            applied.append(await session.service.set_knobs(knobs))

        async def when(condition: Callable[[StepRecord], bool]) -> None:
            await watcher.when(condition, since=applied[-1].adopted_step)

        await watcher.when(lambda step: step.running == 32)
        await change(max_num_seqs=8)
        await when(lambda step: "max_num_seqs" in step.satisfied)
        await change(max_num_seqs=24)
        await when(lambda step: step.running == 24)
        await change(max_num_seqs=4)
        await when(lambda step: "max_num_seqs" in step.satisfied)
        await change(policy="priority")
        await change(max_num_batched_tokens=64)
        await change(max_num_seqs=999)
        await when(lambda step: step.running > 8)
        await change(max_num_batched_tokens=5000)
        return applied

    async def disturb(watcher: Watcher) -> tuple[list[Any], list[Applied]]:
        turning = asyncio.create_task(turn(watcher))
        outcomes = await collect_all(session, crowd(session, 64, tag="turned"))
        return outcomes, await turning

    with Watcher(session) as watcher:
        outcomes, applied = session.runtime.call(disturb(watcher))
    record_property("knobs", [str(one) for one in applied])
    assert [outcome.finish_reason for outcome in outcomes] == ["length"] * 64
    assert [outcome.token_ids for outcome in outcomes] == undisturbed
    assert {c.name: (c.asked, c.got) for one in applied for c in one.clamped} == {
        "max_num_seqs": (999, 32), "max_num_batched_tokens": (5000, 1024),
    }  # fmt: skip
    assert_caps_are_kept(watcher.steps, applied)
    satisfied = [e for e in watcher.events if isinstance(e, KnobsSatisfied)]
    assert [e.name for e in satisfied] == [
        "max_num_seqs", "max_num_seqs", "max_num_batched_tokens",
    ]  # fmt: skip
    told = [e.step for e in watcher.events if isinstance(e, KnobsChanged) and e.step is not None]
    assert told == [one.adopted_step for one in applied if one.adopted_step is not None]


def assert_caps_are_kept(steps: list[StepRecord], applied: list[Applied]) -> None:
    """From the step that was told on, and not one step earlier."""
    by_index = {step.index: step for step in steps}
    for one in applied:
        if one.adopted_step is None:  # a knob of the front scheduler
            continue
        for name in ("max_num_seqs", "max_num_batched_tokens"):
            if name in one.changed:
                before, after = one.changed[name]
                assert getattr(by_index[one.adopted_step - 1], name) == before
                assert getattr(by_index[one.adopted_step], name) == after
    for earlier, step in pairwise(steps):
        assert step.prefill_tokens + step.decode_tokens <= step.max_num_batched_tokens
        grown = {row.request_id for row in step.rows} - {row.request_id for row in earlier.rows}
        assert not grown or len(step.rows) <= step.max_num_seqs, "admitted above the cap"


def test_evicting_makes_room_at_once_and_loses_nothing(
    session: Session, undisturbed: list[tuple[int, ...]]
) -> None:
    async def evict(watcher: Watcher) -> tuple[int, tuple[str, ...]]:
        await watcher.when(lambda step: step.running == 32)
        applied = await session.service.set_knobs({"max_num_seqs": 4}, evict=True)
        assert applied.adopted_step is not None
        await watcher.when(lambda step: step.running <= 4, since=applied.adopted_step)
        await session.service.set_knobs({"max_num_seqs": 32})
        return applied.adopted_step, applied.evicted

    async def both(watcher: Watcher) -> tuple[list[Any], tuple[int, tuple[str, ...]]]:
        evicting = asyncio.create_task(evict(watcher))
        outcomes = await collect_all(session, crowd(session, 64, tag="evicted"))
        return outcomes, await evicting

    with Watcher(session) as watcher:
        outcomes, (adopted, evicted) = session.runtime.call(both(watcher))
    before, first = next(two for two in pairwise(watcher.steps) if two[1].preempted)
    assert first.index >= adopted
    assert set(first.preempted) == set(evicted)
    assert {row.request_id for row in before.rows} > set(evicted), "they made room one by one"
    assert len(first.rows) <= 4
    assert [outcome.token_ids for outcome in outcomes] == undisturbed
    rows = session.requests()
    assert int(rows.loc[list(evicted), "preemptions"].min()) >= 1


def test_a_paused_engine_takes_no_step_and_goes_on_as_if_nothing_was(
    session: Session, undisturbed: list[tuple[int, ...]]
) -> None:
    async def pause(watcher: Watcher) -> tuple[int, int]:
        engine: Any = session.service.engine
        await watcher.when(lambda step: step.running == 32)
        await asyncio.to_thread(session.pause)
        before = await engine._call("llmserve_adopt", {})  # the steps that it has planned
        await asyncio.sleep(0.3)
        after = await engine._call("llmserve_adopt", {})
        await asyncio.to_thread(session.resume)
        return before, after

    async def both(watcher: Watcher) -> tuple[list[Any], tuple[int, int]]:
        pausing = asyncio.create_task(pause(watcher))
        outcomes = await collect_all(session, crowd(session, 64, tag="paused"))
        return outcomes, await pausing

    with Watcher(session) as watcher:
        outcomes, (before, after) = session.runtime.call(both(watcher))
    assert before == after
    assert [outcome.token_ids for outcome in outcomes] == undisturbed


def test_a_long_prompt_is_cut_into_chunks_of_the_threshold(session: Session) -> None:
    session.set(long_prefill_token_threshold=50)
    long, other = crowd(session, 2, tag="long", longest_prompt=8)
    long = type(long)(
        id="long", prompt_ids=tuple(range(10, 410)), sampling=long.sampling, arrival=long.arrival
    )
    with Watcher(session) as watcher:
        session.runtime.call(collect_all(session, [other, long]))
    chunks = [
        row.tokens
        for step in watcher.steps
        for row in step.rows
        if row.request_id == "long" and row.kind == "prefill"
    ]
    assert sum(chunks) == 400
    assert max(chunks) == 50


def test_a_knob_that_vllm_has_not_is_told_and_put_back(session: Session) -> None:
    applied = session.set(batching="static", batch_window_ms=20.0)
    assert [(clamp.name, clamp.got) for clamp in applied.clamped] == [
        ("batching", "continuous"), ("batch_window_ms", 0.0),
    ]  # fmt: skip
    assert session.knobs.batching == "continuous"
    assert set(session.info.unsupported) >= {"batching", "batch_window_ms"}


def test_its_workers_count_what_they_hold_on_gpus(session: Session) -> None:
    engine: Any = session.service.engine
    counted = session.runtime.call(engine._call("llmserve_device_bytes"))
    known = session.runtime.call(engine.device_bytes())
    if session.info.device == "cpu":
        assert (counted, known) == (0, None)  # None: there is no GPU to hold anything on
    else:
        assert counted > 0
        assert known > 0


def test_a_seed_says_the_same_in_however_many_chunks_a_prompt_is_read(session: Session) -> None:
    """Once as it comes, and again after the request has lost its KV."""

    def ask(tag: str) -> list[Request]:
        return [
            Request(
                id=f"{tag}-{seed}", prompt_ids=tuple(range(10, 100)), arrival=session.clock.now(),
                sampling=SamplingParams(
                    max_tokens=200, temperature=1.0, seed=seed, ignore_eos=True
                ),
            )
            for seed in range(4)
        ]  # fmt: skip

    async def evict(watcher: Watcher) -> tuple[str, ...]:
        await watcher.when(lambda step: sum(row.kind == "decode" for row in step.rows) == 4)
        applied = await session.service.set_knobs({"max_num_seqs": 1}, evict=True)
        await session.service.set_knobs({"max_num_seqs": 32})
        return applied.evicted

    async def both(watcher: Watcher) -> tuple[list[Any], tuple[str, ...]]:
        evicting = asyncio.create_task(evict(watcher))
        return await collect_all(session, ask("chunked")), await evicting

    whole = [one.token_ids for one in session.runtime.call(collect_all(session, ask("whole")))]
    assert len(set(whole)) == 4, "equality would show nothing"
    session.set(max_num_batched_tokens=16)
    with Watcher(session) as watcher:
        outcomes, evicted = session.runtime.call(both(watcher))
    assert len(evicted) == 3
    assert [one.token_ids for one in outcomes] == whole


def test_where_prompts_are_not_chunked_a_step_takes_a_whole_one() -> None:
    from llmserve.engines.vllm.live_scheduler import _describe

    def fewest(chunked: bool) -> int:
        scheduler = SimpleNamespace(
            max_num_running_reqs=8, max_num_scheduled_tokens=1024, num_spec_tokens=3,
            max_model_len=512, scheduler_config=SimpleNamespace(enable_chunked_prefill=chunked),
        )  # fmt: skip
        return _describe(SimpleNamespace(scheduler=scheduler))["fewest_tokens"]

    assert (fewest(True), fewest(False)) == (4, 512)
