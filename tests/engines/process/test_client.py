"""What the kernel makes of the child's messages, without a child."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from llmserve.core.types import Chunk, Request, SamplingParams, TokenLogprob
from llmserve.engines.base import EngineError, RequestFailed
from llmserve.engines.process.client import ProcessClient
from llmserve.engines.process.messages import Delta, Stepped

ONE = Request(id="r", prompt_ids=(1,), sampling=SamplingParams(logprobs=0), arrival=0.0)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 10))


@asynccontextmanager
async def living() -> AsyncIterator[ProcessClient]:
    life = ProcessClient("test", "none", lambda record: None, {})
    yield life
    await life.stop()


def token(number: int, **more: Any) -> bytes:
    """The message of a step that brought one token."""
    told = (TokenLogprob(number, 0.0),)
    delta = Delta("r", f"{number} ", (number,), told, **more)
    return msgspec.msgpack.encode(Stepped([delta]))


def test_what_came_while_the_loop_was_busy_is_one_chunk_and_all_else_one_each() -> None:
    async def main() -> None:
        got: list[Chunk] = []
        async with living() as life:
            inbox = life.open(ONE, got.append)
            life.child_said(token(1, cached_tokens=16))
            assert got == [], "nothing is delivered while a message is read"
            await asyncio.sleep(0)
            assert [chunk.token_ids for chunk in got] == [(1,)]
            for number in (2, 3):
                life.child_said(token(number))
            life.child_said(token(4, finish_reason="length"))
            await inbox.delivery.over
        first, rest = got
        assert (first.cached_tokens, rest.cached_tokens) == (16, 0)
        assert (rest.text, rest.token_ids, rest.finish_reason) == ("2 3 4 ", (2, 3, 4), "length")
        assert [one.token_id for one in rest.logprobs or ()] == [2, 3, 4]

    run(main())


def test_a_request_that_fails_in_the_engine_fails_alone() -> None:
    async def main() -> None:
        async with living() as life:
            inbox = life.open(ONE, lambda chunk: None)
            life.child_said(token(1, finish_reason="error", error="no such token"))
            with pytest.raises(RequestFailed, match="no such token"):
                await inbox.delivery.over
            assert not life.over

    run(main())


def test_what_cannot_be_said_to_the_process_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with living() as life:
            half = SamplingParams(stop=("\ud800",))  # half a surrogate pair is no text
            with pytest.raises(UnicodeEncodeError):
                life.open(msgspec.structs.replace(ONE, sampling=half), lambda chunk: None)
            life.open(ONE, lambda chunk: None)
            life.close(ONE.id)

    run(main())


def test_what_came_before_the_end_of_the_process_is_told_before_it() -> None:
    async def main() -> None:
        got: list[Chunk] = []
        async with living() as life:
            inbox = life.open(ONE, got.append)
            life.child_said(token(1))
            await life.stop()
            with pytest.raises(EngineError, match="stopped"):
                await inbox.delivery.over
        assert [chunk.token_ids for chunk in got] == [(1,)]

    run(main())
