"""A service on virtual time and its bench, over the simulator or a scripted engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from llmserve.bench.load.workload import Workload
from llmserve.bench.results.slo import Slo
from llmserve.bench.run.driver import Bench, Progress, ServiceTarget
from llmserve.core.clock import VirtualClock
from llmserve.core.events import Event, EventBus
from llmserve.core.knobs import KnobBoard, Knobs
from llmserve.core.types import Request
from llmserve.engines.base import Deliver, Engine
from llmserve.engines.simulator.engine import SimulatorEngine
from llmserve.observe import Telemetry
from llmserve.serving.publisher import publish_step
from llmserve.serving.service import Service
from support.scripted import ScriptedEngine

T = TypeVar("T")


class StalledEngine(ScriptedEngine):
    """Answers at once, but nobody whose turn falls into the stall before its end."""

    def __init__(self, clock: VirtualClock, begins: float, ends: float) -> None:
        super().__init__(["x", "y"], gap_s=0.0)
        self._clock = clock
        self._begins, self._ends = begins, ends

    async def generate(self, request: Request, deliver: Deliver) -> None:
        if self._begins <= self._clock.now() < self._ends:
            await self._clock.sleep_until(self._ends)
        await super().generate(request, deliver)


class World:
    """`run(main)` starts the service, runs `main(world)` in virtual time, and stops it."""

    def __init__(
        self, engine: Engine | None = None, clock: VirtualClock | None = None, **knobs: object
    ) -> None:
        self.clock = clock or VirtualClock()
        self.bus = EventBus()
        self.events: list[Event] = []
        self.bus.attach(self.events.append)
        self.telemetry = Telemetry(self.bus, self.clock)
        self._engine = engine
        self._knobs = Knobs().changed({"max_num_seqs": 16, **knobs})
        self.service: Service

    def run(self, main: Callable[[World], Awaitable[T]]) -> T:
        return self.clock.run(self._main(main))

    async def _main(self, main: Callable[[World], Awaitable[T]]) -> T:
        sink = partial(publish_step, self.bus)
        engine = self._engine or SimulatorEngine(sink=sink, clock=self.clock)
        self.service = Service(engine, KnobBoard(self._knobs), self.bus, self.clock)
        await self.service.start()
        try:
            return await main(self)
        finally:
            await self.service.stop()

    def bench(
        self,
        progress: Callable[[Progress], None] | None = None,
        cap: int = 10_000,
        slo: Slo | None = None,
        **load: Any,
    ) -> Bench:
        target = ServiceTarget(self.service, self.bus)
        return Bench(target, Workload(**load), slo=slo, progress=progress, max_outstanding=cap)
