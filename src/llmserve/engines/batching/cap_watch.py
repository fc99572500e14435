"""Watches when all that runs first keeps a lowered cap."""

from __future__ import annotations

from llmserve.core.knobs import Knobs


class CapWatch:
    """Notices when a lowered cap is first kept by all that runs."""

    def __init__(self) -> None:
        self._seqs = 0
        self._tokens = 0
        self._draining = False

    def met(self, knobs: Knobs, running: int) -> list[str]:
        """Names of lowered caps that are met in this plan for the first time."""
        names: list[str] = []
        if knobs.max_num_batched_tokens < self._tokens:
            names.append("max_num_batched_tokens")
        lowered = knobs.max_num_seqs < self._seqs
        if (lowered or self._draining) and running <= knobs.max_num_seqs:
            names.append("max_num_seqs")
        self._draining = (lowered or self._draining) and running > knobs.max_num_seqs
        self._seqs, self._tokens = knobs.max_num_seqs, knobs.max_num_batched_tokens
        return names
