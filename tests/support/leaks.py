"""What a serving process holds that clients can leave behind."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from llmserve.entrypoints.http.pacing import Pacer
from llmserve.observe import Telemetry
from llmserve.serving.runtime import Runtime
from llmserve.serving.service import Service

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Held(NamedTuple):
    """Nothing of it may grow by clients that are gone."""

    slots: int
    """Requests that wait or run."""
    blocks: int
    """Tokens of KV room in use, as the engine's last step left it."""
    descriptors: int
    tasks: int
    streams: int
    """Answers that a pacer counts or is still to call."""

    def beyond(self, before: Held) -> dict[str, int]:
        """What there is more of than before."""
        pairs = zip(self._fields, self, before, strict=True)
        return {name: now - then for name, now, then in pairs if now > then}


class Served(Protocol):
    """A session, or a server of the tests."""

    @property
    def service(self) -> Service: ...
    @property
    def telemetry(self) -> Telemetry: ...
    @property
    def runtime(self) -> Runtime: ...


def held(served: Served) -> Held:
    """Of the whole process: while one server is in it, that is the server's."""

    async def look() -> Held:
        gc.collect()
        now = served.telemetry.stats.snapshot(served.service.clock.now())
        pacers = [one for one in gc.get_objects() if type(one) is Pacer]
        return Held(
            now.running + now.waiting,
            now.kv_used_tokens or 0,
            _descriptors(),
            sum(_name(task) not in _OWN for task in asyncio.all_tasks()),
            sum(one.open + len(one._due) + len(one._later) for one in pacers),
        )

    return served.runtime.call(look())


_OWN = ("held.<locals>.look", "Event.wait")
"""This look, and what uvicorn's clock waits for, which is a task anew each second."""


def _name(task: asyncio.Task[Any]) -> str:
    return str(getattr(task.get_coro(), "__qualname__", ""))


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def rss_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
