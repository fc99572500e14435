"""The engine's life: started, died and brought back, stopped. One change at a time.

Between two lives requests wait in front; `ready` says whether they may be handed over.
"""

from __future__ import annotations

import asyncio
from typing import Literal, Protocol

from llmserve.engines import Engine, EngineError

State = Literal["new", "up", "restarting", "failed", "closed"]

_ATTEMPTS = 3
"""At bringing back an engine that died, before what waits is told so."""


class Front(Protocol):
    """Who hands requests to the engine."""

    async def came_up(self) -> None:
        """The engine runs: give it the knobs and learn its limits."""
        ...

    def changed(self) -> None:
        """The state is another: hand over who may go."""
        ...

    def gave_up(self, error: EngineError) -> None:
        """The engine does not come back: end who waits."""
        ...


class EngineKeeper:
    def __init__(self, engine: Engine, front: Front) -> None:
        self.state: State = "new"
        self._engine = engine
        self._front = front
        self._reviving: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self.state == "up"

    async def start(self) -> None:
        """EngineError where it cannot start."""
        await self._engine.start()
        await self._front.came_up()
        self.state = "up"

    async def close(self) -> None:
        """For good."""
        self.state = "closed"
        if self._reviving is not None:
            self._reviving.cancel()
        await self._engine.stop()

    def died(self) -> None:
        """What waits goes on waiting while it is started anew."""
        if self.state == "up":
            self._revive()

    def wanted(self) -> None:
        """A request has come: one more attempt, where the last ones failed."""
        if self.state == "failed":
            self._revive()

    def _revive(self) -> None:
        self.state = "restarting"
        self._reviving = asyncio.get_running_loop().create_task(self._bring_back())

    async def _bring_back(self) -> None:
        for attempt in range(_ATTEMPTS):
            await asyncio.sleep(0.2 * attempt)
            try:
                await self._engine.stop()
                await self.start()
            except EngineError as failed:
                error = failed
                continue
            break
        else:
            self.state = "failed"
            self._front.gave_up(error)
        self._front.changed()
