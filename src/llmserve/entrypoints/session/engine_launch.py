"""An engine made, and its process begun, before the rest of its session is imported.

An engine's process takes a second and more to import what it needs, and the endpoint a fifth of
one. So whoever can is launched first.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Self

from llmserve.core.clock import MonotonicClock
from llmserve.core.events import EventBus
from llmserve.engines import registry
from llmserve.engines.base import Launches
from llmserve.serving.publisher import publish_step
from llmserve.serving.runtime import Runtime


class EngineLaunch:
    """The engine, and what it needs to live: clock, events and loop. Within `with`, an error ends
    all of it."""

    def __init__(self, name: str, options: Mapping[str, object]) -> None:
        """Raises as `registry.create`, and EngineError where no process can be started."""
        self.name = name
        self.clock = MonotonicClock()
        self.bus = EventBus()
        sink = partial(publish_step, self.bus)
        self.engine = registry.create(name, sink=sink, clock=self.clock, **options)
        self.runtime = Runtime()
        if isinstance(self.engine, Launches):
            with self:
                self.runtime.call(self.engine.launch())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or not self.runtime.alive:
            return
        try:
            if isinstance(self.engine, Launches):
                self.runtime.call(self.engine.stop())
        finally:
            self.runtime.close()
