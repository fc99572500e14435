"""The first message to the torch engine's process; all others are those of every engine's."""

from __future__ import annotations

import msgspec

from llmserve.core.knobs import Knobs
from llmserve.engines.process.messages import ToChild
from llmserve.engines.torch.options import TorchOptions


class LoadModel(msgspec.Struct, frozen=True, tag=True):
    """What to load."""

    options: TorchOptions
    knobs: Knobs


ToWorker = LoadModel | ToChild
