"""A service behind a response cache: what a bench measures that asks for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from llmserve.bench.load.workload import Load
from llmserve.bench.results.cache_figures import CacheLog
from llmserve.bench.run.driver import Said, ServiceTarget
from llmserve.core.events import EventBus
from llmserve.core.types import Request
from llmserve.engines.base import EngineError
from llmserve.serving.service import Service
from llmserve.serving.stream import Refused, RequestTimeout, Stream


class Keeps(Protocol):
    """A response cache in front of a service."""

    def submit(self, request: Request) -> tuple[Stream, str | None]:
        """The reply's stream, and "hit" or "miss"; None where it may not be cached."""
        ...


@runtime_checkable
class RepeatsPrompts(Protocol):
    """A load that may send a prompt again."""

    @property
    def repeat_share(self) -> float: ...


class CachedTarget(ServiceTarget):
    """Each run begins with an empty cache of its own; the endpoint's is not touched."""

    def __init__(self, service: Service, bus: EventBus, make: Callable[[], Keeps]) -> None:
        super().__init__(service, bus)
        self._make = make
        self._cache = make()
        self._log = CacheLog(sees_joined=True)

    def begin(self) -> CacheLog:
        self._cache = self._make()
        self._log = CacheLog(sees_joined=True)
        return self._log

    async def send(self, request: Request) -> Said | None:
        log = self._log
        hit = False
        try:
            stream, found = self._cache.submit(request)
            hit, joined = found == "hit", stream.outcome is None
            outcome = await stream.collect()
        except (Refused, RequestTimeout, EngineError):
            log.failed += hit  # of any other the service's event says why
            return None
        if hit:
            log.hit(request.arrival, self.clock.now(), joined=joined)
        else:
            log.misses += 1
        ids = (*request.prompt_ids, *outcome.token_ids)
        return Said(ids=ids, tokens=len(ids))


def check_repeats(load: Load) -> None:
    """ValueError where nothing in the load could be a hit."""
    if not isinstance(load, RepeatsPrompts) or not load.repeat_share:
        raise ValueError(
            "response_cache needs a load that sends prompts again, or there is nothing to hit: "
            "give repeat_share=0.3 (--repeat-share 0.3), of a Workload"
        )
