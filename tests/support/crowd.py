"""A crowd of requests for a live engine, and the watching of it from the loop's thread."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from llmserve.core.events import Event, StepRecorded
from llmserve.core.types import Outcome, Request, SamplingParams, StepRecord
from llmserve.entrypoints.session.session import Session


def crowd(session: Session, size: int, *, tag: str, longest_prompt: int = 40) -> list[Request]:
    """The same prompts and lengths for every tag; greedy, and never stopping early."""
    draw = random.Random(7)

    def prompt() -> tuple[int, ...]:
        return tuple(draw.randrange(10, 1000) for _ in range(draw.randint(4, longest_prompt)))

    return [
        Request(
            id=f"{tag}-{number}",
            prompt_ids=prompt(),
            sampling=SamplingParams(
                max_tokens=draw.randint(20, 60), temperature=0.0, ignore_eos=True
            ),
            arrival=session.clock.now(),
            priority=number % 3,
        )
        for number in range(size)
    ]


async def collect_all(session: Session, requests: list[Request]) -> list[Outcome]:
    """Submit all at once, and wait for all; called on the session's loop."""
    streams = [session.service.submit(request) for request in requests]
    return list(await asyncio.gather(*(stream.collect() for stream in streams)))


class Watcher:
    """Everything published while it is attached."""

    def __init__(self, session: Session) -> None:
        self.events: list[Event] = []
        self._bus = session.bus
        self._waiters: list[tuple[Callable[[StepRecord], bool], asyncio.Future[StepRecord]]] = []

    @property
    def steps(self) -> list[StepRecord]:
        return [event.record for event in self.events if isinstance(event, StepRecorded)]

    def __enter__(self) -> Watcher:
        self._bus.attach(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        self._bus.detach(self._hear)

    async def when(
        self, condition: Callable[[StepRecord], bool], since: int | None = None
    ) -> StepRecord:
        """The first step that is so, of those to come or of all from index `since` on."""
        told = [step for step in self.steps if since is not None and step.index >= since]
        for step in filter(condition, told):
            return step
        future: asyncio.Future[StepRecord] = asyncio.get_running_loop().create_future()
        self._waiters.append((condition, future))
        return await asyncio.wait_for(future, 60)

    async def until_idle(self) -> None:
        """Until the empty step has been told that vLLM takes behind the last request's."""

        def empty(step: StepRecord) -> bool:
            return not step.rows and step.running == step.waiting == 0

        if not (self.steps and empty(self.steps[-1])):
            await self.when(empty)

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, StepRecorded):
            for condition, future in self._waiters:
                if not future.done() and condition(event.record):
                    future.set_result(event.record)
