"""The first message to the simulator's process; all others are those of every engine's."""

from __future__ import annotations

import msgspec

from llmserve.core.knobs import Knobs
from llmserve.engines.process.messages import ToChild
from llmserve.engines.simulator.setup import SimulatorSetup


class StartStepping(msgspec.Struct, frozen=True, tag=True):
    """What to simulate."""

    setup: SimulatorSetup
    knobs: Knobs


ToSimulator = StartStepping | ToChild
