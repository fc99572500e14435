"""The engine supervisor: starts an engine, restarts it after a death, puts it to sleep, stops it.

While the engine is down requests wait in front; only in state "up" are they dispatched. One change
of state at a time: a caller that wants another waits for the one under way, and `close` cuts it
short.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Literal, Protocol

from llmserve.core.types import ParamError
from llmserve.core.validation import mistyped
from llmserve.engines.base import Engine, EngineError, Sleeps

log = logging.getLogger(__name__)

State = Literal["new", "up", "draining", "restarting", "asleep", "failed", "closed"]

_ATTEMPTS = 3
"""At bringing back an engine, before waiting requests are ended with the error."""


_STOP_S = 15.0
"""For a start that is cut short to end what it has started."""


class Front(Protocol):
    """The part that dispatches requests to the engine."""

    async def came_up(self) -> None:
        """The engine runs: give it the knobs and learn its limits."""
        ...

    async def drain(self, seconds: float, error: Exception) -> int:
        """Wait until no request is in the engine; after `seconds` end the rest with `error`.

        Return how many were ended so."""
        ...

    def changed(self) -> None:
        """The state has changed: dispatch what may be dispatched."""
        ...

    def gave_up(self, error: EngineError) -> None:
        """The engine does not come back: end the waiting requests."""
        ...


class EngineSupervisor:
    def __init__(self, engine: Engine, front: Front) -> None:
        self.state: State = "new"
        self._engine = engine
        self._front = front
        self._turn = asyncio.Lock()
        self._working: set[asyncio.Task[object]] = set()
        self._news = asyncio.Event()
        self._error = EngineError("the engine was not started")
        self._get_up: Callable[[], Awaitable[None]] = engine.start

    @property
    def ready(self) -> bool:
        return self.state == "up"

    @property
    def holds(self) -> bool:
        """Whether the engine is there, with its memory."""
        stopped = self._get_up == self._engine.start
        return self.state not in ("new", "failed") and not (self.state == "asleep" and stopped)

    async def start(self) -> None:
        """Start the engine for the first time; EngineError where it cannot start."""
        await self._engine.start()
        await self._front.came_up()
        self._become("up")

    async def close(self) -> None:
        """Stop the engine for good."""
        self._become("closed")
        working = self._working - {asyncio.current_task()}
        for task in working:
            task.cancel()
        if working:
            await asyncio.wait(working, timeout=_STOP_S)
        await self._engine.stop()

    def died(self) -> None:
        """Start the engine anew after its death; waiting requests go on waiting."""
        if self.state == "up":
            self._revive()

    def wanted(self) -> None:
        """Try once more to start a failed engine, for a request has come."""
        if self.state == "failed":
            self._revive()

    async def up(self) -> None:
        """Wait until the engine takes requests; EngineError when it will not."""
        while self.state != "up":
            if self.state in ("failed", "closed"):
                raise self._error
            await self._news.wait()

    async def sleep(self, level: int, drain_s: float) -> str:
        """Let requests in the engine end, for at most `drain_s`, then give its memory back. Those
        that come meanwhile wait for `wake`. Says in a sentence what was done."""
        if level not in (1, 2):
            raise ParamError("level", str(mistyped("sleep", "level 1 or 2", level)))
        async with self._change():
            if self.state == "asleep":
                return "the engine sleeps already"
            ended = await self._drain(drain_s, "the engine was put to sleep")
            try:
                done = await self._lie_down(level)
            except BaseException:
                self._give_up(EngineError("the engine did not go to sleep"))
                raise
            self._become("asleep")
        return done + _cut_short(ended, drain_s)

    async def wake(self) -> str:
        """Wake the engine; EngineError where it stays down, and the next request tries again."""
        async with self._change():
            if self.state == "up":
                return "the engine is awake"
            asleep = self.state == "asleep"
            try:
                await self._bring_back(self._get_up if asleep else self._anew)
            except asyncio.CancelledError:
                if asleep:
                    self._become("asleep")
                else:
                    self._give_up(_interrupted())
                raise
        return "the engine is awake again, and serves what has waited"

    async def restart(self, drain_s: float) -> str:
        """As `sleep` and `wake` in one, with a new engine whatever the state of this one."""
        async with self._change():
            ended = await self._drain(drain_s, "the engine was restarted")
            try:
                await self._bring_back(self._anew)
            except asyncio.CancelledError:
                self._give_up(_interrupted())
                raise
        return "the engine was restarted" + _cut_short(ended, drain_s)

    async def _drain(self, seconds: float, why: str) -> int:
        before = self.state
        self._become("draining")
        try:
            error = EngineError(f"{why} before this request was done; send it again")
            return await self._front.drain(seconds, error)
        except asyncio.CancelledError:
            self._become(before)
            self._front.changed()
            raise

    async def _lie_down(self, level: int) -> str:
        engine = self._engine
        if isinstance(engine, Sleeps):
            self._get_up = engine.wake
            with suppress(EngineError):  # it died meanwhile: there is nothing that could sleep
                return await engine.sleep(level)
        self._get_up = engine.start
        await engine.stop()
        return (
            f"the {engine.info.engine} engine has no sleep of its own: it was stopped instead, and "
            "wake starts it again"
        )

    def _revive(self) -> None:
        self._become("restarting")
        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(self._back_to_life())
        self._working.add(task)

    async def _back_to_life(self) -> None:
        with suppress(EngineError):  # the waiting requests get it
            async with self._change():
                if self.state == "restarting":
                    await self._bring_back(self._anew)

    async def _bring_back(self, how: Callable[[], Awaitable[None]]) -> None:
        self._become("restarting")
        for attempt in range(_ATTEMPTS):
            await asyncio.sleep(0.2 * attempt)
            try:
                await (how if attempt == 0 else self._anew)()
                await self._front.came_up()
            except EngineError as error:
                self._error = error
                continue
            except Exception as error:  # a defect, but waiting requests must get it
                log.exception("the engine failed to come up")
                self._error = EngineError(f"the engine did not come up: {error!r}")
                continue
            self._become("up")
            self._front.changed()
            return
        self._give_up(self._error)
        raise self._error

    async def _anew(self) -> None:
        await self._engine.stop()
        await self._engine.start()

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None, "inside a task"
        self._working.add(task)
        try:
            async with self._turn:
                if self.state == "closed":
                    raise EngineError("the server was stopped")
                yield
        except asyncio.CancelledError:
            if self.state == "closed":  # by `close`: an answer for the caller of the change
                raise EngineError("the server was stopped") from None
            raise
        finally:
            self._working.discard(task)

    def _give_up(self, error: EngineError) -> None:
        """Fail until the next request; the waiting requests get the error."""
        if self.state != "closed":
            self._error = error
            self._become("failed")
            self._front.gave_up(error)

    def _become(self, state: State) -> None:
        if self.state == "closed":  # whatever was under way
            return
        if state == "closed":
            self._error = EngineError("the server was stopped")
        self.state = state
        self._news.set()
        self._news = asyncio.Event()


def _interrupted() -> EngineError:
    return EngineError("the engine's start was interrupted; the next request starts it anew")


def _cut_short(ended: int, seconds: float) -> str:
    if not ended:
        return ""
    many = "request was" if ended == 1 else "requests were"
    return f"; {ended} {many} not done within {seconds:g} s and ended"
