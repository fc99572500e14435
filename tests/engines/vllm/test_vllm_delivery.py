"""vLLM's own collector of a request's outputs, with our tap on it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import RequestOutputCollector

from llmserve.core.types import Chunk, Request, SamplingParams
from llmserve.engines.base import Deliver
from llmserve.engines.process.delivery import LoopTurn
from llmserve.engines.vllm.output_hook import OutputHook
from llmserve.entrypoints.session.session import Session
from support.crowd import collect_all, crowd


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 10))


def output(*ids: int, reason: str | None = None) -> RequestOutput:
    text = "".join(f"{one} " for one in ids)
    part = CompletionOutput(0, text, list(ids), None, None, finish_reason=reason)
    return RequestOutput("r", None, [1, 2], None, [part], reason is not None, num_cached_tokens=2)


def tapped(deliver: Deliver, *before: RequestOutput) -> tuple[RequestOutputCollector, OutputHook]:
    collector = RequestOutputCollector(RequestOutputKind.DELTA, "r-12345678")
    for one in before:
        collector.put(one)
    return collector, OutputHook(collector, LoopTurn(), deliver, raw=False)


def test_what_one_turn_brought_is_one_chunk_and_what_came_before_the_tap_is_not_lost() -> None:
    async def main() -> None:
        got: list[Chunk] = []
        collector, tap = tapped(got.append, output(1))
        await asyncio.sleep(0)
        collector.put(output(2))
        assert len(got) == 1, "nothing is delivered while vLLM is at work"
        collector.put(output(3))
        await asyncio.sleep(0)
        collector.put(output(4, reason="length"))
        await tap.drained()
        assert [(chunk.text, chunk.token_ids) for chunk in got] == [
            ("1 ", (1,)), ("2 3 ", (2, 3)), ("4 ", (4,)),
        ]  # fmt: skip
        assert [chunk.cached_tokens for chunk in got] == [2, 0, 0]
        assert got[-1].finish_reason == "length"

    run(main())


def test_what_the_taker_raises_does_not_reach_vllms_loop() -> None:
    async def main() -> None:
        def refuse(chunk: Chunk) -> None:
            raise KeyError(chunk.text)

        collector, tap = tapped(refuse)
        collector.put(output(1))
        with pytest.raises(KeyError):
            await tap.drained()
        collector.put(output(2))  # there is more to come until it has been told

    run(main())


def test_vllms_error_ends_the_request_behind_what_it_has() -> None:
    async def main() -> None:
        got: list[Chunk] = []
        collector, tap = tapped(got.append)
        collector.put(output(1))
        await asyncio.sleep(0)
        collector.put(EngineDeadError())
        with pytest.raises(EngineDeadError):
            await tap.drained()
        assert [chunk.token_ids for chunk in got] == [(1,)]

    run(main())


def test_once_cancelled_it_takes_vllms_last_word_in_silence() -> None:
    async def main() -> None:
        got: list[Chunk] = []
        collector, tap = tapped(got.append)
        task = asyncio.create_task(tap.drained())
        await asyncio.sleep(0)
        task.cancel()
        collector.put(output(1, reason="abort"))
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert task.cancelled()
        assert got == []

    run(main())


@pytest.mark.parametrize("leaves", ["raises", "is cancelled", "is cancelled at once"])
def test_who_leaves_frees_the_engine_and_costs_nobody_else_a_token(
    session: Session, leaves: str
) -> None:
    engine: Any = session.service.engine
    alone = session.runtime.call(collect_all(session, crowd(session, 4, tag="alone")))
    sampling = SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True)
    one = Request(id="leaver", prompt_ids=(5, 6), sampling=sampling, arrival=session.clock.now())

    async def main() -> list[tuple[int, ...]]:
        some = asyncio.Event()

        def deliver(chunk: Chunk) -> None:
            some.set()
            if leaves == "raises":
                raise ZeroDivisionError

        leaver = asyncio.create_task(engine.generate(one, deliver))
        others = asyncio.create_task(collect_all(session, crowd(session, 4, tag="others")))
        if leaves == "is cancelled at once":
            await asyncio.sleep(0)
        else:
            await some.wait()
        if leaves != "raises":
            leaver.cancel()
        await asyncio.wait([leaver])
        assert leaver.cancelled() == (leaves != "raises")
        assert "leaver" not in engine._llm.output_processor.external_req_ids
        return [outcome.token_ids for outcome in await others]

    assert session.runtime.call(main()) == [outcome.token_ids for outcome in alone]
    assert engine._llm.output_processor.get_num_unfinished_requests() == 0
    assert session.runtime.call(collect_all(session, crowd(session, 1, tag="after")))
