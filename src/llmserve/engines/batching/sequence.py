"""A request as an engine sees it, and what one engine step does with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from llmserve.core.types import Request, RowKind, WaitReason


class Sequence:
    """A request and its tokens so far. Only `StepPlanner` changes one.

    `computed` of the `tokens` have their KV stored, so `tokens[computed:]` is what the next steps
    must run. The newest token is always among these: its KV is written when it is first read.
    """

    __slots__ = (
        "added_s", "blocks", "cached", "computed", "id", "keys", "limit", "preemptions",
        "prefill_end", "prompt_tokens", "request", "scored", "scoring", "served", "tokens",
        "wait_reason",
    )

    def __init__(self, request: Request, added_s: float, limit: int) -> None:
        self.request, self.id = request, request.id
        self.tokens = list(request.prompt_ids)
        self.prompt_tokens = len(self.tokens)
        self.limit = limit
        """Prompt and reply together may be this long: by max_tokens, the model and the KV."""
        self.added_s = added_s
        self.computed = 0
        self.prefill_end = 0
        """Tokens known when it was last admitted: up to here its rows are prefill."""
        self.blocks: list[int] = []
        """Its KV blocks, in order: token i is in blocks[i // block_size]."""
        self.keys: list[bytes] = []
        """Of its full blocks, as far as they are reckoned (`prefix.py`)."""
        self.cached: int | None = None
        """Prompt tokens that needed no computation when it was first admitted."""
        self.scoring = request.sampling.prompt_logprobs is not None
        """Log-probabilities of its prompt are still to come."""
        self.scored = 0
        """Tokens of such a prompt whose logits were had."""
        self.preemptions = 0
        self.served = 0
        """Number of the last plan with a row of this sequence."""
        self.wait_reason: WaitReason | None = None
        """The last reported reason for its wait."""

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def full(self) -> bool:
        """No token may follow: the engine ends it with "length" and removes it. One that may have
        no token at all (max_tokens 0) is full when its prompt is computed."""
        return len(self.tokens) >= self.limit and self.computed >= self.prompt_tokens

    def __repr__(self) -> str:
        return f"<{self.id}: {self.computed} of {len(self.tokens)} computed, limit {self.limit}>"


class PlannedRow(NamedTuple):
    """One sequence's part of a step: run tokens[start : start + tokens]."""

    seq: Sequence
    start: int
    tokens: int
    kind: RowKind
    samples: bool
    """This row reaches the last known token, and a new one is drawn from its logits."""


@dataclass(slots=True)
class Plan:
    """One step. Rows are in no promised order, at most one per sequence, and never none."""

    rows: list[PlannedRow]
    max_num_seqs: int
    max_num_batched_tokens: int
    together: int = 0
    """So many sequences decode one token each beside the rows (`lockstep.py`)."""
    preempted: list[Sequence] = field(default_factory=list)
    """These lost their KV in this plan: free their storage before the rows run."""
    cached_tokens: int = 0
    """Tokens of those admitted in this step that start with a copy of known KV."""
    wait_reasons: list[tuple[str, WaitReason]] = field(default_factory=list)
    satisfied: list[str] = field(default_factory=list)

    def report_too(self, earlier: Plan) -> None:
        """Report also what an earlier plan had to, of which no row could be run."""
        self.preempted = earlier.preempted + self.preempted
        self.cached_tokens += earlier.cached_tokens
        self.wait_reasons = earlier.wait_reasons + self.wait_reasons
        self.satisfied = earlier.satisfied + self.satisfied


class Draft:
    """A plan in the making: its rows and what is left of the token budget, and of the tokens whose
    log-probabilities a step may bring."""

    def __init__(self, budget: int, threshold: int, scores: int) -> None:
        self.rows: dict[str, PlannedRow] = {}
        self.preempted: list[Sequence] = []
        self.together = 0
        self.budget = budget
        self.scores = scores
        self.cached = 0
        self._threshold = threshold

    def chunk(self, seq: Sequence, most: int) -> int:
        tokens = min(len(seq.tokens) - seq.computed, self.budget, most)
        if seq.scoring:
            tokens = min(tokens, self.scores)
        return min(tokens, self._threshold) if self._threshold else tokens

    def put(self, seq: Sequence, tokens: int) -> None:
        start = seq.computed
        kind: RowKind = "prefill" if start < seq.prefill_end else "decode"
        samples = start + tokens == len(seq.tokens) < seq.limit
        self.rows[seq.id] = PlannedRow(seq, start, tokens, kind, samples)
        self.budget -= tokens
        if seq.scoring:
            self.scores -= tokens

    def drop(self, seq: Sequence) -> None:
        row = self.rows.pop(seq.id, None)
        if row:
            self.budget += row.tokens
            if seq.scoring:
                self.scores += row.tokens
