"""A planner driven step by step, as an engine would, with every token a 7."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from llmserve.core.knobs import Knobs
from llmserve.core.types import Request, WaitReason
from llmserve.engines.batching.sequence import Plan, Sequence
from llmserve.engines.batching.step_planner import StepPlanner
from support.requests import request


class Stepper:
    """`step()` plans, commits, removes who is full and checks the invariants."""

    def __init__(
        self,
        *,
        kv_blocks: int = 1000,
        block_size: int = 4,
        max_model_len: int = 1000,
        prefix_caching: bool = False,
        knobs: Mapping[str, object] | None = None,
    ) -> None:
        self.planner = StepPlanner(
            kv_blocks=kv_blocks, block_size=block_size, max_model_len=max_model_len,
            prefix_caching=prefix_caching,
        )
        self.knobs = Knobs().changed(knobs or {})
        self.now = 0.0
        self.finished: list[str] = []
        self.plans: list[Plan] = []
        self.reasons: dict[str, WaitReason] = {}

    def set(self, **changes: object) -> None:
        self.knobs = self.knobs.changed(changes)

    def add(self, id: str, prompt_tokens: int = 4, max_tokens: int = 8) -> Sequence:
        return self.put(request(id, prompt_tokens=prompt_tokens, max_tokens=max_tokens))

    def say(self, id: str, prompt: Iterable[int], max_tokens: int = 1) -> Sequence:
        """Add a request with these prompt tokens."""
        one = request(id, max_tokens=max_tokens)
        return self.put(msgspec.structs.replace(one, prompt_ids=tuple(prompt)))

    def put(self, one: Request) -> Sequence:
        return self.planner.add(one, self.now)

    def step(self) -> dict[str, str]:
        """Rows by request, as "p8" (8 tokens of prefill), "d1", with ">" where a token comes."""
        plan = self.planner.plan(self.knobs, self.now)
        if plan is None:
            return {}
        self.plans.append(plan)
        self.reasons.update(plan.wait_reasons)
        self.planner.commit(plan, {row.seq.id: 7 for row in plan.rows if row.samples})
        for row in plan.rows:
            if row.seq.full:
                self.planner.remove(row.seq.id)
                self.finished.append(row.seq.id)
        self.planner.check()
        return {r.seq.id: f"{r.kind[0]}{r.tokens}{'>' * r.samples}" for r in plan.rows}

    def steps(self, most: int = 10_000) -> int:
        """Step until nothing is left to do; how many steps that took."""
        for count in range(most):
            if not self.step():
                return count
        raise AssertionError(f"not done after {most} steps")

    @property
    def last(self) -> Plan:
        return self.plans[-1]

    @property
    def running(self) -> list[str]:
        return [seq.id for seq in self.planner.running]

    @property
    def waiting(self) -> list[str]:
        return [seq.id for seq in self.planner.waiting]
