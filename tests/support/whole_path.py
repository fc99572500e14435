"""The whole path on virtual time: asyncio, the service itself and the simulator engine, which the
fast simulation must equal event by event."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from llmserve.bench.load.workload import Load
from llmserve.bench.results.report import Report
from llmserve.bench.run.driver import Bench, ServiceTarget
from llmserve.core.clock import VirtualClock
from llmserve.core.events import Event, EventBus
from llmserve.core.knobs import KnobBoard, Knobs
from llmserve.core.tenants import Terms
from llmserve.engines.simulator.engine import SimulatorEngine
from llmserve.lab.senders import Timed
from llmserve.lab.simulation import Change
from llmserve.scheduling.user_policy import Choice
from llmserve.serving.publisher import publish_step
from llmserve.serving.service import Service
from llmserve.serving.stream import Refused


class NumberedService(Service):
    """Its ids are those of a simulation, which say nothing of a start."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._numbers = itertools.count(1)

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-{next(self._numbers)}"


@dataclass
class WholePath:
    """What one run came to."""

    knobs: Knobs = field(default_factory=Knobs)
    events: list[Event] = field(default_factory=list)
    report: Report | None = None
    failed: Exception | None = None
    """Why a policy of the user's own was removed."""


def through_service(
    load: Load | Sequence[Timed],
    knobs: Mapping[str, object],
    *,
    policy: Choice | None = None,
    changes: Iterable[Change] = (),
    terms: Mapping[str, Terms] | None = None,
    keep: bool = True,
    **engine: Any,
) -> WholePath:
    """As `simulate` takes it. keep: all events."""
    clock = VirtualClock()
    run = _run(clock, load, knobs, policy, changes, terms, keep, engine)
    return clock.run(run)


async def _run(
    clock: VirtualClock, load: Load | Sequence[Timed], knobs: Mapping[str, object],
    policy: Choice | None, changes: Iterable[Change], terms: Mapping[str, Terms] | None,
    keep: bool, options: Mapping[str, Any],
) -> WholePath:  # fmt: skip
    bus, whole = EventBus(), WholePath()
    if keep:
        bus.attach(whole.events.append)
    engine = SimulatorEngine(sink=partial(publish_step, bus), clock=clock, **options)
    service = NumberedService(engine, KnobBoard(Knobs().changed(knobs)), bus, clock, terms)
    await service.start()
    if policy is not None:
        await service.use_policy(policy)
    tasks: list[asyncio.Task[Any]] = []

    def turn(values: Mapping[str, object]) -> None:
        work = service.set_knobs(values, "simulate")
        tasks.append(asyncio.get_running_loop().create_task(work))

    for when, values in changes:
        asyncio.get_running_loop().call_at(when, turn, values)
    if isinstance(load, Sequence):
        await asyncio.get_running_loop().create_task(_send(clock, service, load))
    else:
        whole.report = await Bench(ServiceTarget(service, bus), load).run()
    whole.knobs, whole.failed = service.board.current, service.policy_error
    bus.detach(whole.events.append)
    for task in tasks:
        task.cancel()
    await service.stop()
    return whole


async def _send(clock: VirtualClock, service: Service, load: Sequence[Timed]) -> None:
    """All requests at their times; returns in the turn in which the last client has its end."""
    reading: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()
    for given in load:
        request, leaves_s = given if isinstance(given, tuple) else (given, None)
        await clock.sleep_until(request.arrival)
        try:
            stream = service.submit(request)
        except Refused:
            continue
        if leaves_s is not None:
            loop.call_at(leaves_s, stream.cancel)
        reading.append(loop.create_task(_read(stream)))
    if reading:
        await asyncio.wait(reading)


async def _read(stream: Any) -> None:
    with suppress(Exception):  # as every client, whatever its end
        async for _ in stream:
            pass

