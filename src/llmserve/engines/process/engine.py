"""What every engine with a process of its own does alike, once that process runs."""

from __future__ import annotations

from itertools import count

from llmserve.core.clock import Clock
from llmserve.core.knobs import Applied, Knobs, differences
from llmserve.core.types import Request
from llmserve.engines.base import Deliver, EngineError, StepSink
from llmserve.engines.limits import clamp
from llmserve.engines.process.client import ProcessClient
from llmserve.engines.process.messages import ResetCache, Retune


class ProcessEngine:
    """Begins, and is configured by, its subclass: `start` sets `_run`."""

    def __init__(self, called: str, sink: StepSink, clock: Clock, ceilings: dict[str, int]) -> None:
        """called: as errors say, "the torch engine"."""
        self._called = called
        self._sink = sink
        self._clock = clock
        self._ceilings = ceilings
        self._knobs, _ = clamp(Knobs(), ceilings)
        self._run: ProcessClient | None = None
        self._questions = count(1)

    async def stop(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            await run.stop()

    @property
    def dead(self) -> bool:
        return self._run is not None and self._run.over

    async def apply(self, knobs: Knobs) -> Applied:
        asked_at = self._clock.now()
        run = self._running()
        before, (values, clamps) = self._knobs, clamp(knobs, self._ceilings)
        step = await run.ask(Retune(next(self._questions), values))
        self._knobs = values
        return Applied(
            values=values,
            changed=differences(before, values),
            clamped=clamps,
            adopted_step=step,
            ms=(self._clock.now() - asked_at) * 1e3,
        )

    async def reset_cache(self) -> None:
        """Forget all cached prefixes that no running request holds."""
        await self._running().ask(ResetCache(next(self._questions)))

    async def generate(self, request: Request, deliver: Deliver) -> None:
        """What one turn of the loop brought is one chunk. Raises ParamError for a prompt that
        cannot run, `RequestFailed` where the engine failed on this request alone."""
        run = self._running()
        inbox = run.open(request, deliver)
        try:
            await inbox.delivery.over
        finally:
            run.close(request.id)

    def _running(self) -> ProcessClient:
        if self._run is None:
            raise EngineError(f"{self._called} is not running")
        return self._run
