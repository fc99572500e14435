"""Services on one virtual clock, side by side, as a comparison meets them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from llmserve.bench.run.driver import ServiceTarget
from llmserve.core.clock import VirtualClock
from llmserve.core.events import EventBus
from llmserve.core.knobs import KnobBoard, Knobs
from llmserve.engines.simulator.engine import SimulatorEngine
from llmserve.lab.settings import Side
from llmserve.serving.publisher import publish_step
from llmserve.serving.service import Service


async def nothing() -> None:
    """Entering a side that is a server of its own takes nothing."""


@asynccontextmanager
async def simulated(clock: VirtualClock, **options: Any) -> AsyncIterator[tuple[Service, EventBus]]:
    bus = EventBus()
    engine = SimulatorEngine(sink=partial(publish_step, bus), clock=clock, **options)
    service = Service(engine, KnobBoard(Knobs()), bus, clock)
    await service.start()
    try:
        yield service, bus
    finally:
        await service.stop()


@asynccontextmanager
async def side(clock: VirtualClock, label: str, **options: Any) -> AsyncIterator[Side]:
    async with simulated(clock, **options) as (service, bus):
        yield Side(label, ServiceTarget(service, bus), nothing)
