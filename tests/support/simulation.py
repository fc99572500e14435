"""A simulator on virtual time, with its records and what each client received."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from llmserve.core.clock import VirtualClock
from llmserve.core.knobs import Knobs
from llmserve.core.types import Chunk, Request, SamplingParams, StepRecord
from llmserve.engines.simulator.engine import SimulatorEngine


@dataclass
class Received:
    chunks: list[Chunk] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    steps_told: list[int] = field(default_factory=list)
    """How many steps had been told when each chunk came."""

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def token_ids(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]

    @property
    def last(self) -> Chunk:
        return self.chunks[-1]

    @property
    def times_ms(self) -> list[float]:
        return [round(t * 1e3, 6) for t in self.times]


class Simulation:
    def __init__(self, clock: VirtualClock | None = None, **options: Any) -> None:
        self.clock = clock or VirtualClock()
        self.records: list[StepRecord] = []
        self.engine = SimulatorEngine(sink=self.records.append, clock=self.clock, **options)

    def run(
        self,
        test: Callable[[Simulation], Coroutine[Any, Any, None]],
        **knobs: object,
    ) -> Simulation:
        async def main() -> None:
            await self.engine.start()
            await self.engine.apply(Knobs().changed(knobs))
            try:
                await test(self)
            finally:
                await self.engine.stop()

        self.clock.run(main())
        return self

    async def ask(
        self, id: str, prompt: str = "tell me", *, received: Received | None = None, **sampling: Any
    ) -> Received:
        got = received or Received()
        one = Request(
            id=id,
            prompt_ids=tuple(self.engine.tokenizer.encode(prompt)),
            sampling=SamplingParams(**sampling),
            arrival=self.clock.now(),
        )

        def deliver(chunk: Chunk) -> None:
            got.chunks.append(chunk)
            got.times.append(self.clock.now())
            got.steps_told.append(len(self.records))

        await self.engine.generate(one, deliver)
        return got

    def rows(self) -> list[dict[str, str]]:
        return [
            {row.request_id: f"{row.kind[0]}{row.tokens}" for row in record.rows}
            for record in self.records
        ]

    def durations_ms(self) -> list[float]:
        return [round(record.duration_s * 1e3, 6) for record in self.records]
