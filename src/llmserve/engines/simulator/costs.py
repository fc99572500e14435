"""What a simulated step takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from llmserve.core.validation import real
from llmserve.engines.batching.sequence import PlannedRow

MOST_MS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """The cost of a step: a part for any prefill, one for any decode, and so much per token."""

    prefill_ms: float = 25.0
    decode_ms: float = 10.0
    prefill_token_ms: float = 0.0
    decode_token_ms: float = 0.0

    def __post_init__(self) -> None:
        for name, cost in asdict(self).items():
            object.__setattr__(self, name, real(name, cost, 0, MOST_MS, "ms"))

    def seconds(self, rows: Iterable[PlannedRow], together: int = 0) -> float:
        """Of a step with these rows, and so many decodes of one token beside them."""
        tokens = {"prefill": 0, "decode": together}
        for row in rows:
            tokens[row.kind] += row.tokens
        ms = tokens["prefill"] * self.prefill_token_ms + tokens["decode"] * self.decode_token_ms
        ms += self.prefill_ms if tokens["prefill"] else 0.0
        ms += self.decode_ms if tokens["decode"] else 0.0
        return ms / 1e3
