"""How chunks leave an engine: in order, once, to the end, and into no request but their own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.events import EventBus
from llmserve.core.knobs import KnobBoard, Knobs
from llmserve.core.types import Chunk
from llmserve.engines.base import EngineError
from llmserve.engines.process.delivery import Delivery, LoopTurn
from llmserve.engines.simulator.engine import SimulatorEngine
from llmserve.serving.service import Service
from support.requests import request

LAST = Chunk(text="b", finish_reason="stop")


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 10))


def test_it_is_over_with_the_last_chunk_and_takes_none_after_it() -> None:
    async def main() -> None:
        got: list[Chunk] = []
        delivery = Delivery(got.append)
        delivery.give(Chunk(text="a"))
        assert not delivery.over.done()
        delivery.give(LAST)
        delivery.give(Chunk(text="late"))
        delivery.fail(EngineError("late"))
        await delivery.over
        assert [chunk.text for chunk in got] == ["a", "b"]

    run(main())


def test_what_the_taker_raises_ends_its_own_request_and_reaches_nobody_else() -> None:
    async def main() -> None:
        def refuse(chunk: Chunk) -> None:
            raise KeyError(chunk.text)

        got: list[Chunk] = []
        broken, whole = Delivery(refuse), Delivery(got.append)
        for delivery in (broken, whole):
            delivery.give(LAST)
        with pytest.raises(KeyError, match="b"):
            await broken.over
        await whole.over
        assert got == [LAST]

    run(main())


def test_from_the_moment_its_task_is_cancelled_nothing_is_delivered() -> None:
    async def main() -> None:
        got: list[Chunk] = []
        delivery = Delivery(got.append)

        async def wait() -> None:
            await delivery.over

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        delivery.give(LAST)  # before the task has had a turn
        await asyncio.wait([task])
        assert task.cancelled()
        assert got == []

    run(main())


def test_all_with_news_are_told_in_order_when_the_turn_is_over_and_once() -> None:
    async def main() -> None:
        told: list[str] = []
        turn = LoopTurn()
        turn.note(lambda: told.append("a"))
        turn.note(lambda: told.append("b"))
        assert told == []
        await asyncio.sleep(0)
        assert told == ["a", "b"]
        turn.note(lambda: turn.note(lambda: told.append("c")))
        await asyncio.sleep(0)
        assert told == ["a", "b"]
        await asyncio.sleep(0)
        assert told == ["a", "b", "c"]

    run(main())


def test_a_reply_that_nobody_reads_takes_at_most_its_max_tokens_and_holds_up_nobody() -> None:
    clock = VirtualClock()

    async def main() -> None:
        engine = SimulatorEngine(sink=lambda record: None, clock=clock)
        service = Service(engine, KnobBoard(Knobs()), EventBus(), clock)
        await service.start()
        unread = service.submit(request("unread", max_tokens=5))
        read = await service.submit(request("read", max_tokens=40)).collect()
        assert len(read.token_ids) == 40
        assert unread.outcome is not None, "it ended though nobody read it"
        assert [len(chunk.token_ids) for chunk in unread.ready()] == [1] * 5
        await service.stop()

    clock.run(main())
