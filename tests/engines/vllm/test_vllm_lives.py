"""The lives of one engine that guesses ahead and has little memory: it preempts, is killed, sleeps.

Its tests build on each other: guesses are counted from its start on, and its end comes last.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

import llmserve
from llmserve.core.types import Outcome, Request, SamplingParams
from llmserve.engines.base import EngineError
from llmserve.entrypoints.session.session import Session
from support.crowd import Watcher, collect_all, crowd
from support.kernels import gone
from support.small_vllm import OPTIONS
from support.speculating import NGRAM, check, guessed, said

TINY_KV = 10 * 128 * 3072
"""Ten blocks of the model's KV, 128 tokens each."""


@pytest.fixture(scope="module")
def cramped(few_threads: None) -> Iterator[Session]:
    options = OPTIONS | {"kv_cache_memory_bytes": TINY_KV, "speculative_config": NGRAM}
    with llmserve.serve(engine="vllm", max_num_seqs=16, max_active=64, **options) as running:
        yield running


def test_speculation_by_ngrams_changes_no_word_and_is_counted(
    cramped: Session, shared: Session
) -> None:
    check(guessed(cramped), said(shared, "plain"), NGRAM)
    applied = cramped.set(max_num_batched_tokens=1)
    assert applied.values.max_num_batched_tokens == 4, "one token and three guesses"
    cramped.set(max_num_batched_tokens=1024, max_active=None)


def test_no_chunk_is_shorter_than_what_a_speculating_request_takes(cramped: Session) -> None:
    """vLLM asserts it, and would end."""
    applied = cramped.set(long_prefill_token_threshold=2)
    assert [(one.name, one.asked, one.got) for one in applied.clamped] == [
        ("long_prefill_token_threshold", 2, 4)
    ]
    sampling = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
    asked = [
        Request(id=f"short-{n}", prompt_ids=(10 + n,), sampling=sampling,
                arrival=cramped.clock.now())
        for n in range(8)
    ]  # fmt: skip
    ends = cramped.runtime.call(collect_all(cramped, asked))
    assert [one.finish_reason for one in ends] == ["length"] * 8
    cramped.set(long_prefill_token_threshold=0)


def test_out_of_kv_memory_preempts_and_loses_nothing(cramped: Session, shared: Session) -> None:
    def ask(session: Session) -> list[Request]:
        sampling = SamplingParams(max_tokens=250, temperature=0.0, ignore_eos=True)
        return [
            Request(
                id=f"kv-{n}", prompt_ids=tuple(range(10 + n, 110 + n)), sampling=sampling,
                arrival=session.clock.now(),
            )
            for n in range(8)
        ]  # fmt: skip

    roomy = shared.runtime.call(collect_all(shared, ask(shared)))
    with Watcher(cramped) as watcher:
        outcomes = cramped.runtime.call(collect_all(cramped, ask(cramped)))
    assert sum(len(step.preempted) for step in watcher.steps) > 0
    assert [one.token_ids for one in outcomes] == [one.token_ids for one in roomy]
    assert int(cramped.requests()["preemptions"].max()) > 0
    assert cramped.telemetry.steps.missing == 0


def ask_over_http(session: Session, count: int, max_tokens: int = 3) -> list[Future[int]]:
    """Statuses to come."""
    pool = ThreadPoolExecutor(count)

    def ask() -> int:
        headers = {"Authorization": f"Bearer {session.api_key}"}
        words = {"messages": [{"role": "user", "content": "hello"}], "ignore_eos": True}
        body = words | {"max_tokens": max_tokens}
        url = f"{session.url}/chat/completions"
        return httpx.post(url, json=body, headers=headers, timeout=300).status_code

    asked = [pool.submit(ask) for _ in range(count)]
    pool.shutdown(wait=False)
    return asked


def wait_until(true: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until, otherwise
        time.sleep(0.01)


def stand_waiting(session: Session, count: int) -> None:
    wait_until(
        lambda: session.service.waiting_for_engine >= count,
        "the requests were answered, or never came",
    )


def leave_the_gate(session: Session) -> None:
    """A client that comes and goes, while two others wait."""
    with socket.create_connection((session.host, session.port)) as client:
        head = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {session.api_key}"
        client.sendall(f"{head}\r\n\r\n".encode())
        stand_waiting(session, 3)
    wait_until(lambda: session.service.waiting_for_engine == 2, "it has left, and still counts")


def test_a_killed_engine_ends_what_ran_and_comes_back_for_what_waits(cramped: Session) -> None:
    """Six are in the engine when it dies (max_num_seqs + 2), one of them over HTTP; the others wait
    in front, and three more come over HTTP while there is no engine."""
    cramped.set(max_num_seqs=4, queue_timeout_s=600)  # its next start may take long
    requests = crowd(cramped, 12, tag="killed")
    dead = psutil.Process(cramped.info.pids[0])
    engine: Any = cramped.service.engine

    async def one(request: Request) -> Outcome | EngineError:
        try:
            return await cramped.service.submit(request).collect()
        except EngineError as error:
            return error

    async def kill() -> list[Outcome | EngineError]:
        with Watcher(cramped) as watcher:
            tasks = [asyncio.create_task(one(request)) for request in requests]
            await engine.resume()
            await watcher.when(lambda step: sum(row.kind == "decode" for row in step.rows) >= 4)
            dead.kill()
            return list(await asyncio.gather(*tasks))

    cramped.pause()  # or the first may have ended when the others come
    first = ask_over_http(cramped, 1, max_tokens=450)
    wait_until(lambda: cramped.stats().running == 1, "the first request never ran")
    told = cramped.runtime.submit(kill())
    assert [one.result(60) for one in first] == [503]
    late = ask_over_http(cramped, 3)
    stand_waiting(cramped, 3)
    ends = told.result(300)
    failed = [end for end in ends if isinstance(end, EngineError)]
    served = [end for end in ends if isinstance(end, Outcome)]
    assert len(failed) == 5
    assert all("vLLM engine process died" in str(error) for error in failed)
    assert [one.finish_reason for one in served] == ["length"] * 7
    assert [one.result(60) for one in late] == [200] * 3
    assert cramped.info.pids[0] != dead.pid
    assert gone({dead.pid}) == set()
    assert cramped.knobs.max_num_seqs == 4


def test_asleep_it_holds_no_process_and_serves_who_waited_once_awake(cramped: Session) -> None:
    family = set(cramped.info.pids)
    assert "stopped instead" in cramped.sleep(1)
    assert gone(family) == set()
    assert cramped.service.pids == (), "somebody else may have the pid by now"
    asked = ask_over_http(cramped, 2)
    stand_waiting(cramped, 2)
    leave_the_gate(cramped)
    cramped.set(max_num_seqs=3)
    cramped.wake()
    assert [one.result(60) for one in asked] == [200] * 2
    assert int(cramped.tape().iloc[-1].max_num_seqs) == 3


def test_an_engine_that_dies_unseen_is_known_to_be_dead_and_closes(cramped: Session) -> None:
    """The next request would start it anew, as test_sleep.py sees on another one."""
    family = set(cramped.info.pids)
    psutil.Process(cramped.info.pids[0]).kill()
    wait_until(lambda: cramped.service.engine.dead, "vLLM's client never noticed")
    assert cramped.close().left == ()
    assert gone(family) == set()
