"""A service over a scripted engine in virtual time, with every event kept."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from llmserve.core.clock import VirtualClock
from llmserve.core.events import Event, EventBus, Finished, Rejection
from llmserve.core.knobs import KnobBoard, Knobs
from llmserve.serving.service import Service
from llmserve.serving.stream import Stream
from support.requests import request
from support.scripted import ScriptedEngine


class World:
    """A service whose events are kept."""

    def __init__(self, clock: VirtualClock, engine: ScriptedEngine, knobs: Knobs) -> None:
        self.events: list[Event] = []
        bus = EventBus()
        bus.attach(self.events.append)
        self.clock = clock
        self.engine = engine
        self.service = Service(engine, KnobBoard(knobs), bus, clock)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def submit(self, id: str, **options: Any) -> Stream:
        return self.service.submit(request(id, self.clock.now(), **options))


def run(
    test: Callable[[World], Coroutine[Any, Any, None]],
    pieces: tuple[str, ...] = ("he", "llo"),
    gap_s: float = 1.0,
    knobs: Knobs | None = None,
    engine: ScriptedEngine | None = None,
) -> World:
    clock = VirtualClock()
    worlds: list[World] = []

    async def main() -> None:
        world = World(clock, engine or ScriptedEngine(pieces, gap_s), knobs or Knobs())
        worlds.append(world)
        await world.service.start()
        await test(world)
        await world.service.stop()
        ended = [e.request_id for e in world.events if isinstance(e, Finished | Rejection)]
        assert len(ended) == len(set(ended)), "a request ended twice"
        assert world.engine.here == [], "the engine still holds a request"

    clock.run(main())
    return worlds[0]
