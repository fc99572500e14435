"""The simulator's options, checked, and the duration of its steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from llmserve.core.validation import flag, real, whole
from llmserve.engines.base import EngineInfo, no_option
from llmserve.engines.batching.sequence import PlannedRow
from llmserve.engines.limits import ANY_WHOLE, MOST_TOKENS, ceiling
from llmserve.engines.simulator.costs import MOST_MS, StepCost
from llmserve.engines.simulator.step_model import Ranks, Spread, StepTimeModel, StepWork, work_of
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
    times: StepTimeModel | None = None
    """What steps take as it was measured, in place of the costs and the jitter above."""
    dispatch_ms: float = 0.0
    """A request typically comes into the engine so long after it is dispatched."""
    dispatch: Spread | None = None
    """How far single requests are from that; a factor."""
    delivery_ms: float = 0.0
    """A step's tokens are typically delivered so long after its end, in the order of the steps."""
    delivery: Spread | None = None
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
            "dispatch_ms": real("dispatch_ms", self.dispatch_ms, 0, MOST_MS, "ms"),
            "delivery_ms": real("delivery_ms", self.delivery_ms, 0, MOST_MS, "ms"),
            "seed": whole("seed", self.seed, *ANY_WHOLE),
            "block_size": whole("block_size", self.block_size, 1, MOST_TOKENS, "tokens"),
            "max_model_len": whole("max_model_len", self.max_model_len, 1, MOST_TOKENS, "tokens"),
            "process": flag("process", self.process),
        }
        least = int(checked["block_size"])
        checked["kv_capacity_tokens"] = whole(
            "kv_capacity_tokens", self.kv_capacity_tokens, least, MOST_TOKENS
        )
        if self.times is not None:
            self.times.check()
        for name in ("dispatch", "delivery"):
            if (spread := getattr(self, name)) is not None:
                spread.check(name)
        if self.process and (self.dispatch_ms or self.delivery_ms):
            raise ValueError(
                "process=True has the delays of a real process: leave dispatch_ms and delivery_ms "
                "out, or process"
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
    """How long each step takes: its typical time, times a factor that is drawn anew for each."""

    def __init__(self, setup: SimulatorSetup) -> None:
        self._cost, self._jitter = setup.cost, setup.jitter
        self._random = random.Random(setup.seed)
        self.kv_s = 0.0
        """Seconds for each KV token read."""
        self.varies = bool(setup.jitter)
        """Whether a factor is drawn at all."""
        self._last: float | None = None
        self._kept: float | None = None
        self._fixed: Callable[[StepWork], float] | None = None
        self._factors: tuple[list[float], list[float]] | None = None
        if (model := setup.times) is not None:
            self._fixed, self.kv_s = model.fast_fixed(), model.kv_s
            self.varies = True
            self._factors = model.decodes.table(), model.prefills.table()
            self._ranks = Ranks(model.correlation, setup.seed)

    def fixed(
        self, rows: Sequence[PlannedRow], together: int = 0, kv_tokens: int = 0
    ) -> tuple[float, int]:
        """Of a step with these rows, and so many decodes of one token beside them that read so
        much: its typical time but for what it reads, and how many tokens of KV that is."""
        if self._fixed is None:
            return self._cost.seconds(rows, together), 0
        work = work_of(rows, together, kv_tokens)
        return self._fixed(work), work.kv_tokens

    def draw(self, seconds: float, prefill: bool) -> float:
        """The duration of a step that typically takes so long."""
        if self._factors is not None:
            return seconds * self._factors[prefill][self._ranks.take()]
        if not self._jitter:
            return seconds
        if (factor := self._kept) is None:
            factor = max(0.0, self._random.gauss(1.0, self._jitter))
        self._last, self._kept = factor, None
        return seconds * factor

    def put_back(self) -> None:
        """Draw the last factor once more: its step was not taken."""
        if self._factors is not None:
            self._ranks.put_back()
        else:
            self._kept = self._last

    def step(self, rows: Sequence[PlannedRow], together: int = 0, kv_tokens: int = 0) -> float:
        """The duration of the next step."""
        seconds, reads = self.fixed(rows, together, kv_tokens)
        return self.draw(seconds + self.kv_s * reads, with_prefill(rows))


class FrontDelay:
    """How long requests take into the engine, or tokens out of it: drawn anew for each."""

    def __init__(self, ms: float, spread: Spread | None, seed: int) -> None:
        self.typical_s = ms / 1e3
        """0 where there is no delay at all."""
        self._table: list[float] | None = None
        if spread is not None and self.typical_s:
            self._table = [factor * self.typical_s for factor in spread.table()]
            self._ranks = Ranks(0.0, seed)

    def draw(self) -> float:
        if self._table is None:
            return self.typical_s
        return self._table[self._ranks.take()]

    def put_back(self) -> None:
        """Draw the last one once more."""
        if self._table is not None:
            self._ranks.put_back()


def front_delays(setup: SimulatorSetup) -> tuple[FrontDelay, FrontDelay]:
    """Of dispatch and of delivery."""
    return (
        FrontDelay(setup.dispatch_ms, setup.dispatch, setup.seed + 1),
        FrontDelay(setup.delivery_ms, setup.delivery, setup.seed + 2),
    )


def with_prefill(rows: Sequence[PlannedRow]) -> bool:
    return any(row.kind == "prefill" for row in rows)
