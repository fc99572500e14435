"""The simulator in a process of its own, as the kernel sees it: messages out, chunks back.

It steps in real time, whatever the kernel's interpreter does: a cell that holds the GIL delays what
is delivered, and not the steps.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import msgspec

from llmserve.core.clock import Clock, MonotonicClock
from llmserve.core.knobs import Applied, Knobs, differences
from llmserve.core.types import Request, Structured
from llmserve.engines.base import Deliver, EngineError, StepSink
from llmserve.engines.limits import clamp
from llmserve.engines.process.client import ProcessClient
from llmserve.engines.process.messages import ResetCache, Retune
from llmserve.engines.simulator.messages import StartStepping
from llmserve.engines.simulator.reply import shortest_reply
from llmserve.engines.simulator.setup import read_setup
from llmserve.engines.simulator.vocabulary import WordTokenizer

WORKER = "llmserve.engines.simulator.worker"


class SimulatorProcess:
    """Satisfies `engines.Engine`, and says what `SimulatorEngine` says: they share the replies."""

    def __init__(self, *, sink: StepSink, clock: Clock, **options: Any) -> None:
        """As `SimulatorEngine`; ValueError for a clock that is not the machine's."""
        if not isinstance(clock, MonotonicClock):
            raise ValueError(
                "process=True steps in real time, and this clock has a time of its own "
                f"({type(clock).__name__}): leave process out, or give it a MonotonicClock"
            )
        self.tokenizer = WordTokenizer()
        self._sink, self._clock = sink, clock
        self._setup = read_setup(None, options, real_time=True)
        self.info = self._setup.info()
        self._knobs, _ = clamp(Knobs(), self.info.ceilings)
        self._run: ProcessClient | None = None
        self._questions = count(1)

    async def start(self) -> None:
        if self._run is not None and not self._run.over:
            return
        await self.stop()
        run = self._run = ProcessClient("simulator", WORKER, self._sink, {})
        try:
            await run.child.start()
            run.say(StartStepping(self._setup, self._knobs))
            await run.ready
        except BaseException as error:
            await self.stop()
            if isinstance(error, OSError | EngineError):
                raise EngineError(f"the simulator did not start: {error}") from None
            raise
        self.info = msgspec.structs.replace(self.info, pids=(run.child.pid,))

    async def stop(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            await run.stop()

    @property
    def dead(self) -> bool:
        return self._run is not None and self._run.over

    async def apply(self, knobs: Knobs) -> Applied:
        asked_at = self._clock.now()
        before, (values, clamps) = self._knobs, clamp(knobs, self.info.ceilings)
        step = await self._running().ask(Retune(next(self._questions), values))
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

    async def check_form(self, structured: Structured) -> None:
        await asyncio.to_thread(shortest_reply, structured)

    async def generate(self, request: Request, deliver: Deliver) -> None:
        """What one turn of the loop brought is one chunk."""
        run = self._running()
        inbox = run.open(request, deliver)
        try:
            await inbox.delivery.over
        finally:
            run.close(request.id)

    def _running(self) -> ProcessClient:
        if self._run is None:
            raise EngineError("the simulator is not running")
        return self._run
