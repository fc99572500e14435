"""The simulator's options, checked, and the duration of its steps."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from llmserve.core.validation import flag, real, whole
from llmserve.engines.base import EngineInfo, no_option
from llmserve.engines.limits import ANY_WHOLE, MOST_TOKENS, ceiling
from llmserve.engines.simulator.costs import StepCost
from llmserve.engines.simulator.vocabulary import VOCABULARY


@dataclass(frozen=True, kw_only=True)
class SimulatorSetup:
    """The simulator's options. Raises ValueError with the bounds where one is out of them."""

    model: str | None = None
    prefill_ms: float = 25.0
    decode_ms: float = 10.0
    prefill_token_ms: float = 0.0
    decode_token_ms: float = 0.0
    jitter: float = 0.0
    """Standard deviation of a step's duration, relative to its cost."""
    seed: int = 0
    kv_capacity_tokens: int = 131_072
    block_size: int = 16
    max_model_len: int = 8192
    enable_prefix_caching: bool = True
    max_num_seqs_ceiling: int = 256
    max_num_batched_tokens_ceiling: int = 16_384
    process: bool = False
    """Step in a process of its own and in real time: a cell that holds the GIL delays no step."""

    def __post_init__(self) -> None:
        _ = self.cost, self.ceilings
        checked = {
            "jitter": real("jitter", self.jitter, 0, 1),
            "seed": whole("seed", self.seed, *ANY_WHOLE),
            "block_size": whole("block_size", self.block_size, 1, MOST_TOKENS, "tokens"),
            "max_model_len": whole("max_model_len", self.max_model_len, 1, MOST_TOKENS, "tokens"),
            "process": flag("process", self.process),
        }
        least = int(checked["block_size"])
        checked["kv_capacity_tokens"] = whole(
            "kv_capacity_tokens", self.kv_capacity_tokens, least, MOST_TOKENS
        )
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def cost(self) -> StepCost:
        return StepCost(
            prefill_ms=self.prefill_ms,
            decode_ms=self.decode_ms,
            prefill_token_ms=self.prefill_token_ms,
            decode_token_ms=self.decode_token_ms,
        )

    @property
    def ceilings(self) -> dict[str, int]:
        batched = ceiling("max_num_batched_tokens", self.max_num_batched_tokens_ceiling)
        return {
            "max_num_seqs": ceiling("max_num_seqs", self.max_num_seqs_ceiling),
            "max_num_batched_tokens": batched,
        }

    @property
    def kv_blocks(self) -> int:
        return self.kv_capacity_tokens // self.block_size

    def info(self) -> EngineInfo:
        capacity = self.kv_blocks * self.block_size
        return EngineInfo(
            engine="simulator",
            model_id=self.model or "simulator",
            max_model_len=min(self.max_model_len, capacity + 1),  # the last token is never stored
            kv_capacity_tokens=capacity,
            block_size=self.block_size,
            vocab_size=VOCABULARY,
            ceilings=self.ceilings,
            device="simulated",
            simulated=True,
            details={name: f"{ms:g}" for name, ms in asdict(self.cost).items()}
            | {"jitter": f"{self.jitter:g}", "seed": str(self.seed)},
        )


def in_process(options: Mapping[str, Any]) -> bool:
    """Whether these options ask for a process of its own."""
    return flag("process", options.get("process", False))


def read_setup(
    cost: StepCost | None, options: Mapping[str, Any], *, real_time: bool = False
) -> SimulatorSetup:
    """The options by their names; TypeError for one that there is not.

    real_time: whether a process of its own may step; elsewhere ValueError where it is asked for."""
    if not real_time and in_process(options):
        raise ValueError(
            "process=True steps in real time, and this simulation has a clock of its own: leave it "
            'out here; serve(engine="simulator", process=True) takes it'
        )
    known = tuple(field.name for field in fields(SimulatorSetup))
    for name in options:
        if name not in known:
            raise no_option("simulator", name, known)
    return SimulatorSetup(**(asdict(cost or StepCost()) | dict(options)))


class StepTimes:
    """How long each step takes: its cost, times a factor that is drawn anew for each."""

    def __init__(self, setup: SimulatorSetup) -> None:
        self.cost = setup.cost
        self.jitter = setup.jitter
        self._random = random.Random(setup.seed)

    def draw(self, seconds: float) -> float:
        """The duration of a step that costs so much."""
        if not self.jitter:
            return seconds
        return seconds * max(0.0, self._random.gauss(1.0, self.jitter))
