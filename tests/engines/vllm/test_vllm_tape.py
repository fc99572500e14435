"""The batch tape of a real vLLM: every step, every token, and why who waits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from llmserve.core.events import WaitReasonChanged
from llmserve.core.types import Request, SamplingParams
from llmserve.entrypoints.session.session import Session
from support.crowd import Watcher, collect_all, crowd


class Counter:
    """Steps by what vLLM's client receives, whoever reads it then."""

    def __init__(self, core: Any) -> None:
        self.steps = 0
        self._queue = core.outputs_queue
        self._put = self._queue.put_nowait

    def __enter__(self) -> Counter:
        self._queue.put_nowait = self._count
        return self

    def __exit__(self, *_: object) -> None:
        del self._queue.put_nowait

    def _count(self, outputs: Any) -> None:
        self.steps += getattr(outputs, "scheduler_stats", None) is not None
        self._put(outputs)


def steps_planned(session: Session) -> int:
    """How many steps the engine process has planned since its start, by its own count."""
    engine: Any = session.service.engine
    planned: int = session.runtime.call(engine._call("llmserve_adopt", {}))
    return planned


def test_no_step_is_missing(session: Session, record_property: Any) -> None:
    engine: Any = session.service.engine

    async def ask(watcher: Watcher, count: int) -> None:
        await collect_all(session, crowd(session, count, tag=f"all{count}"))
        await watcher.until_idle()

    with Watcher(session) as watcher:
        session.runtime.call(ask(watcher, 1))  # the last test's last step may be to come
    first = steps_planned(session)
    with Counter(engine._llm.engine_core) as counter, Watcher(session) as watcher:
        session.runtime.call(ask(watcher, 96))
        last = steps_planned(session)
    record_property("tape", f"{len(watcher.steps)} of {last - first} steps")
    assert [step.index for step in watcher.steps] == list(range(first, last))
    assert counter.steps == last - first
    assert session.telemetry.steps.missing == 0
    assert session.tape()["step"].iloc[-1] == last - 1


def test_every_token_of_every_request_is_on_the_tape(session: Session) -> None:
    requests = crowd(session, 40, tag="tokens", longest_prompt=200)
    with Watcher(session) as watcher:
        outcomes = session.runtime.call(collect_all(session, requests))
    computed = dict.fromkeys((request.id for request in requests), 0)
    decodes = dict(computed)
    for step in watcher.steps:
        for row in step.rows:
            computed[row.request_id] += row.tokens
            decodes[row.request_id] += row.kind == "decode"
    for request, outcome in zip(requests, outcomes, strict=True):
        # the last token is drawn, but never read
        expected = len(request.prompt_ids) + len(outcome.token_ids) - 1
        assert computed[request.id] == expected - outcome.usage.cached_tokens
        assert decodes[request.id] == len(outcome.token_ids) - 1


def test_records_are_consistent_with_themselves(session: Session) -> None:
    with Watcher(session) as watcher:
        session.runtime.call(collect_all(session, crowd(session, 64, tag="self")))
    steps = watcher.steps
    for earlier, later in pairwise(steps):
        assert later.start_s >= earlier.start_s + earlier.duration_s - 1e-9
    assert max(step.running for step in steps) == 32
    assert max(step.waiting for step in steps) > 0
    busy = [step for step in steps if step.running]
    assert all(0 < step.kv_used_tokens <= step.kv_capacity_tokens for step in busy)
    assert steps[-1].running == steps[-1].waiting == steps[-1].kv_used_tokens == 0
    assert all(step.duration_s > 0 for step in steps)


def test_who_waits_is_told_why(session: Session) -> None:
    session.set(max_num_seqs=4)
    with Watcher(session) as watcher:
        session.runtime.call(collect_all(session, crowd(session, 16, tag="held")))
    held = [event for event in watcher.events if isinstance(event, WaitReasonChanged)]
    assert {event.reason for event in held} == {"cap"}
    waited = {event.request_id for event in held}
    assert waited >= {f"held-{number}" for number in range(5, 16)}
    session.set(max_num_seqs=32, max_num_batched_tokens=64)
    long = crowd(session, 16, tag="budget", longest_prompt=200)  # most take several steps
    with Watcher(session) as watcher:
        session.runtime.call(collect_all(session, long))
    assert "token_budget" in {e.reason for e in watcher.events if isinstance(e, WaitReasonChanged)}


def test_a_prefix_that_is_cached_is_told_in_the_step_and_in_the_row(session: Session) -> None:
    def ask(name: str) -> Request:
        sampling = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
        prompt = tuple(range(10, 410))
        return Request(id=name, prompt_ids=prompt, sampling=sampling, arrival=session.clock.now())

    session.runtime.call(collect_all(session, [ask("cold")]))
    with Watcher(session) as watcher:
        session.runtime.call(collect_all(session, [ask("warm")]))
    row = next(row for row in session.telemetry.requests.rows() if row.id == "warm")
    cached = row.cached_tokens or 0
    assert cached >= 256
    first = next(step for step in watcher.steps if step.rows)
    assert first.cached_tokens == cached
    assert first.prefill_tokens == 400 - cached
