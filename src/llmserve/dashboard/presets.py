"""Sets of knob values with a name, and the way back from a change."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from llmserve.core.knobs import SPECS, Applied, Knobs, KnobValue, differences
from llmserve.engines.base import EngineInfo

PRESETS: Final[dict[str, dict[str, KnobValue]]] = {
    "latency": {
        "max_num_seqs": 8, "max_num_batched_tokens": 512, "long_prefill_token_threshold": 256,
        "batching": "continuous",
    },
    "balanced": {
        "max_num_seqs": 32, "max_num_batched_tokens": 2048, "long_prefill_token_threshold": 0,
        "batching": "continuous",
    },
    "throughput": {
        "max_num_seqs": 128, "max_num_batched_tokens": 8192, "long_prefill_token_threshold": 0,
        "batching": "continuous",
    },
}  # fmt: skip
"""Few and small prompts a step for short gaps; the defaults; many at once for tokens per second."""
_STEPS = 100


def preset(name: str, info: EngineInfo) -> dict[str, KnobValue]:
    """Return a preset's values, of the knobs that this engine has, none above its ceilings."""
    return {
        knob: min(value, info.ceilings.get(knob, value)) if isinstance(value, int) else value
        for knob, value in PRESETS[name].items()
        if knob not in info.unsupported
    }


def defaults(info: EngineInfo) -> dict[str, KnobValue]:
    """Return the default of every knob that this engine has."""
    return {
        name: min(spec.default, info.ceilings[name])
        if isinstance(spec.default, int) and name in info.ceilings
        else spec.default
        for name, spec in SPECS.items()
        if name not in info.unsupported
    }


class History:
    """Records changes of the knobs by anyone, and takes the last one back. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changes: deque[dict[str, tuple[KnobValue, KnobValue]]] = deque(maxlen=_STEPS)
        self._undoing = False

    def note(self, before: Knobs, after: Knobs) -> None:
        """For `KnobBoard.watch`."""
        with self._lock:
            if not self._undoing:
                self._changes.append(differences(before, after))

    def undo(self, set_knobs: Callable[..., Applied]) -> Applied | None:
        """Set what the last change changed to what it was; None where there is none."""
        with self._lock:
            if not self._changes:
                return None
            last = self._changes.pop()
            self._undoing = True
        try:
            return set_knobs(**_befores(last))
        finally:
            with self._lock:
                self._undoing = False


def _befores(change: Mapping[str, tuple[KnobValue, KnobValue]]) -> dict[str, KnobValue]:
    return {name: before for name, (before, _) in change.items()}
