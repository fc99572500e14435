"""An engine of somebody else's: this folder and one entry point are all that it takes.

    [project.entry-points."llmserve.engines"]
    toy = "support.toy_engine:ENTRY"
"""

from __future__ import annotations

from llmserve.engines.entry import EngineEntry, MakeEngine


def load() -> MakeEngine:
    from support.toy_engine.engine import ToyEngine

    return ToyEngine


ENTRY = EngineEntry(
    name="toy",
    summary="no model: a parrot",
    load=load,
    install="pip install toy-engine",
    default_model="the parrot",
)
