"""The simulator in a process of its own, as the kernel sees it: messages out, chunks back.

It steps in real time, whatever the kernel's interpreter does: a cell that holds the GIL delays what
is delivered, and not the steps.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from llmserve.core.clock import Clock, MonotonicClock
from llmserve.core.types import Structured
from llmserve.engines.base import EngineError, StepSink
from llmserve.engines.process.client import ProcessClient
from llmserve.engines.process.engine import ProcessEngine
from llmserve.engines.simulator.messages import StartStepping
from llmserve.engines.simulator.reply import shortest_reply
from llmserve.engines.simulator.setup import read_setup
from llmserve.engines.simulator.vocabulary import WordTokenizer

WORKER = "llmserve.engines.simulator.worker"


class SimulatorProcess(ProcessEngine):
    """Satisfies `engines.Engine`, and says what `SimulatorEngine` says: they share the replies."""

    def __init__(self, *, sink: StepSink, clock: Clock, **options: Any) -> None:
        """As `SimulatorEngine`; ValueError for a clock that is not the machine's."""
        if not isinstance(clock, MonotonicClock):
            raise ValueError(
                "process=True steps in real time, and this clock has a time of its own "
                f"({type(clock).__name__}): leave process out, or give it a MonotonicClock"
            )
        self.tokenizer = WordTokenizer()
        self._setup = read_setup(None, options, real_time=True)
        self.info = self._setup.info()
        super().__init__("the simulator", sink, clock, self.info.ceilings)

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

    async def check_form(self, structured: Structured) -> None:
        await asyncio.to_thread(shortest_reply, structured)
