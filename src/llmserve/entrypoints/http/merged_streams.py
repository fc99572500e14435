"""Merges the chunks of one answer's streams in order of arrival, all that are ready at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from llmserve.core.types import Chunk
from llmserve.serving.stream import Stream


class TaggedChunk(NamedTuple):
    choice: int
    chunk: Chunk


def arrivals(streams: Sequence[Stream]) -> AsyncGenerator[list[TaggedChunk], None]:
    """Yield batches of chunks until every stream has ended; raises what the first failing one
    raises.

    Close it (`aclosing`) where you may stop early. A lone stream, the common case, needs no task.
    """
    return _lone(streams[0]) if len(streams) == 1 else _merged(streams)


async def _lone(stream: Stream) -> AsyncGenerator[list[TaggedChunk], None]:
    async for chunk in stream:
        yield [TaggedChunk(0, chunk), *(TaggedChunk(0, more) for more in stream.ready())]


async def _merged(streams: Sequence[Stream]) -> AsyncGenerator[list[TaggedChunk], None]:
    box: list[TaggedChunk] = []
    arrived = asyncio.Event()
    tasks = [
        asyncio.create_task(_feed(choice, stream, box, arrived))
        for choice, stream in enumerate(streams)
    ]
    try:
        while box or not all(task.done() for task in tasks):
            await arrived.wait()
            arrived.clear()
            batch = box.copy()
            box.clear()
            if batch:
                yield batch
            for task in tasks:
                if task.done():
                    task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(
    choice: int, stream: Stream, box: list[TaggedChunk], arrived: asyncio.Event
) -> None:
    try:
        async for chunk in stream:
            box.append(TaggedChunk(choice, chunk))
            arrived.set()
    finally:
        arrived.set()
