"""The planner under everything at once: arrivals, leavers, knobs, modes, too little memory, and
prompts that share beginnings. A memory of its own does what the planner says must be copied."""

from __future__ import annotations

from itertools import takewhile

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmserve.core.knobs import Knobs
from llmserve.engines.batching.prefix_cache import Drop, Keep, Reuse
from llmserve.engines.batching.sequence import Plan, Sequence
from llmserve.engines.batching.step_planner import StepPlanner
from support.examples import examples
from support.requests import request

MOST_STEPS = 5_000


class Memory:
    """What would lie in KV: with each token, all that it was computed from."""

    def __init__(self, planner: StepPlanner) -> None:
        self.planner = planner
        self.slots: dict[str, list[tuple[int, ...]]] = {}
        self.shelf: dict[bytes, list[tuple[int, ...]]] = {}
        self.copied = 0

    def move(self) -> None:
        size = self.planner.pool.block_size
        for move in self.planner.take_moves():
            match move:
                case Keep(key, owner, number):
                    stretch = self.slots[owner][number * size : (number + 1) * size]
                    assert len(stretch) == size, "what is kept was never computed"
                    self.shelf[key] = stretch
                case Drop(key):
                    del self.shelf[key]
                case Reuse(owner, sources):
                    slot = self.slots[owner] = []
                    for source in sources:
                        end = len(slot) + size
                        slot += (
                            self.slots[source][len(slot) : end]
                            if isinstance(source, str)
                            else self.shelf[source]
                        )
                        assert len(slot) == end, "what is copied was never computed"
                    self.copied += len(slot)
        assert self.shelf.keys() == self.planner.pool.shelved

    def run(self, plan: Plan) -> None:
        for row in plan.rows:
            slot = self.slots.setdefault(row.seq.id, [])
            assert len(slot) == row.start
            for end in range(row.start + 1, row.start + row.tokens + 1):
                slot.append(tuple(row.seq.tokens[:end]))

    def check(self) -> None:
        """Everyone has the KV of his own tokens, all that is said to be computed."""
        assert self.slots.keys() == {seq.id for seq in self.planner.running}
        for seq in self.planner.running:
            own = [tuple(seq.tokens[:end]) for end in range(1, seq.computed + 1)]
            assert self.slots[seq.id] == own, "another's KV"


class PlannerMachine(RuleBasedStateMachine):
    """Keeps its own account of every request, and compares after each step."""

    @initialize(blocks=st.integers(2, 12), block_size=st.integers(1, 4), caching=st.booleans())
    def build(self, blocks: int, block_size: int, caching: bool) -> None:
        self.capacity = blocks * block_size
        self.caching = caching
        self.planner = StepPlanner(
            kv_blocks=blocks, block_size=block_size, max_model_len=30, prefix_caching=caching
        )
        self.memory = Memory(self.planner)
        self.knobs = Knobs(max_num_seqs=3, max_num_batched_tokens=8)
        self.now = 0.0
        self.count = 0
        self.short = False
        """Some gave way, and no one who ran has left since."""
        self.here: dict[str, Sequence] = {}
        self.ended: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    @rule(
        prompt=st.integers(1, 40), reply=st.integers(1, 12), shared=st.integers(0, 40),
        end=st.integers(7, 9),
    )
    def arrive(self, prompt: int, reply: int, shared: int, end: int) -> None:
        """Its first `shared` tokens are those of others, the rest may be what is drawn."""
        self.count += 1
        id = f"r{self.count}"
        shared = min(shared, prompt)
        ids = (*range(shared), *[end] * (prompt - shared))
        plain = request(id, prompt_tokens=prompt, max_tokens=reply)
        one = msgspec.structs.replace(plain, prompt_ids=ids)
        try:
            self.here[id] = self.planner.add(one, self.now)
        except ValueError:
            assert prompt + 1 > min(30, self.capacity + 1)

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.here)))
        self.remove(id)
        self.end(id, "left")

    def remove(self, id: str) -> None:
        self.short = self.short and self.here[id] not in self.planner.running
        assert self.planner.remove(id) is self.here[id]
        self.memory.move()
        self.memory.slots.pop(id, None)

    @rule()
    def reset_cache(self) -> None:
        self.planner.reset_cache()
        self.memory.shelf.clear()

    @rule(
        seqs=st.integers(1, 6),
        tokens=st.integers(1, 12),
        threshold=st.sampled_from([0, 1, 3]),
        batching=st.sampled_from(["continuous", "static", "none"]),
        window_ms=st.sampled_from([0.0, 50.0]),
        slots=st.sampled_from([0, 1, 9]),
    )
    def retune(
        self, seqs: int, tokens: int, threshold: int, batching: str, window_ms: float, slots: int
    ) -> None:
        self.knobs = Knobs().changed(
            {
                "max_num_seqs": seqs,
                "max_num_batched_tokens": tokens,
                "long_prefill_token_threshold": threshold,
                "batching": batching,
                "batch_window_ms": window_ms,
                "min_decode_slots": slots,
            }
        )

    @rule(ms=st.integers(0, 60))
    def wait(self, ms: int) -> None:
        self.now += ms / 1000

    @rule(leaver=st.booleans(), short=st.sampled_from([0, 0, 1, 3]))
    def step(self, leaver: bool, short: int = 0) -> None:
        """Memory may turn out shorter than counted, by the slots of so many."""
        running_before = {seq.id for seq in self.planner.running}
        oldest = next((seq.id for seq in self.planner.running), None)
        plan = self.planner.plan(self.knobs, self.now)
        if plan is None:
            assert not running_before
            waits = self.planner.wake_at(self.knobs, self.now)
            assert (waits is not None) == bool(list(self.planner.waiting))
            return
        self.reasons.update(plan.wait_reasons)
        self.take_in(plan)
        self.check_plan(plan, running_before, oldest)
        if short:
            self.give_way(plan, short)
        if leaver and plan.rows:
            id = plan.rows[0].seq.id
            self.remove(id)
            self.end(id, "left")
        self.run(plan)

    def give_way(self, plan: Plan, count: int) -> None:
        victims = [*self.planner.running][-count:]
        self.planner.give_way(plan, reversed(victims))
        for seq in victims:
            del self.memory.slots[seq.id]
        assert not {row.seq.id for row in plan.rows} & {seq.id for seq in victims}
        assert [*self.planner.waiting][: len(victims)] == victims
        self.short = True

    def take_in(self, plan: Plan) -> None:
        """What an engine does with a plan: copy, free, compute."""
        copied = self.memory.copied
        self.memory.move()
        assert plan.cached_tokens == self.memory.copied - copied
        assert self.caching or not plan.cached_tokens
        for seq in plan.preempted:
            del self.memory.slots[seq.id]
        self.memory.run(plan)

    def check_plan(self, plan: Plan, running_before: set[str], oldest: str | None) -> None:
        rows = {row.seq.id: row for row in plan.rows}
        assert plan.rows
        assert len(rows) == len(plan.rows), "two rows of one sequence"
        assert sum(row.tokens for row in plan.rows) <= self.knobs.max_num_batched_tokens
        joined = rows.keys() - running_before
        cap = 1 if self.knobs.batching == "none" else self.knobs.max_num_seqs
        assert not joined or len(list(self.planner.running)) <= cap, "joined above the cap"
        assert not (joined and plan.preempted), "joined a step that preempts"
        running = {seq.id: seq for seq in self.planner.running}
        assert not self.short or len(running) <= max(1, len(running_before)), "joined too early"
        assert rows.keys() <= running.keys(), "a row of one who does not run"
        promised = sum(
            max(0, self.planner.pool.needed(seq.prefill_end) - len(seq.blocks))
            for seq in running.values()
        )
        assert not joined or promised <= self.planner.pool.free, "joined on promised room"
        assert oldest is None or oldest not in {seq.id for seq in plan.preempted}
        for row in plan.rows:
            assert row.start == row.seq.computed
            assert 1 <= row.tokens <= len(row.seq.tokens) - row.start
            assert row.samples == (row.start + row.tokens == len(row.seq.tokens))
            threshold = self.knobs.long_prefill_token_threshold
            assert not threshold or row.tokens <= threshold

        self.check_wait(plan, cap)

    def check_wait(self, plan: Plan, cap: int) -> None:
        """Nobody waits for nothing: the reason reported of the head of the queue is true."""
        head = next(iter(self.planner.waiting), None)
        if head is None:
            return
        assert head.wait_reason == self.reasons[head.id]
        if head.wait_reason == "batch":
            assert self.knobs.batching == "static"
        elif head.wait_reason == "cap":
            prefills = sum(row.kind == "prefill" for row in plan.rows)
            kept = self.knobs.min_decode_slots and prefills >= max(
                1, self.knobs.max_num_seqs - self.knobs.min_decode_slots
            )
            assert kept or len(list(self.planner.running)) >= cap
        elif head.wait_reason == "token_budget":
            assert sum(row.tokens for row in plan.rows) == self.knobs.max_num_batched_tokens
        elif head.wait_reason == "prefix":
            self.check_sharing(head)
        else:
            needs = self.planner.pool.needed
            free = self.planner.pool.free - sum(
                max(0, needs(len(seq.tokens)) - len(seq.blocks)) for seq in self.planner.running
            )
            assert plan.preempted or self.short or needs(len(head.tokens)) > free

    def check_sharing(self, head: Sequence) -> None:
        """Somebody who runs computes at least half of what it would have to compute itself."""
        common = max(
            sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(
                seq.tokens[: seq.prefill_end], head.tokens[:-1], strict=False,
            )))
            for seq in self.planner.running
        )
        assert 2 * common >= len(head.tokens)

    def run(self, plan: Plan) -> None:
        before = {row.seq.id: row.seq.generated for row in plan.rows}
        samples = {row.seq.id: row.samples for row in plan.rows}
        self.planner.commit(plan, {id: 7 for id, draws in samples.items() if draws})
        for row in plan.rows:
            seq = row.seq
            if self.here.get(seq.id) is seq:
                assert seq.generated == before[seq.id] + samples[seq.id]
                assert seq.tokens[: seq.prompt_tokens] == list(seq.request.prompt_ids)
                if seq.full:
                    self.remove(seq.id)
                    self.end(seq.id, "length")

    def end(self, id: str, how: str) -> None:
        assert id not in self.ended, "a request ended twice"
        del self.here[id]
        self.ended[id] = how

    @invariant()
    def whole(self) -> None:
        if not hasattr(self, "planner"):
            return
        self.planner.check()
        self.memory.check()
        known = {seq.id for seq in (*self.planner.waiting, *self.planner.running)}
        assert known == self.here.keys()

    def teardown(self) -> None:
        """Whatever was done before, what is here ends, each after all of its tokens."""
        if not hasattr(self, "planner"):
            return
        left = dict(self.here)
        for _ in range(MOST_STEPS):
            if not self.here:
                break
            self.now = self.planner.wake_at(self.knobs, self.now) or self.now
            self.step_once()
        assert not self.here, "some request never ends"
        for id, seq in left.items():
            assert self.ended[id] == "length"
            asked = seq.prompt_tokens + seq.request.sampling.max_tokens
            assert len(seq.tokens) == min(asked, 30, self.capacity + 1)
        assert self.planner.kv_used_blocks == 0

    def step_once(self) -> None:
        plan = self.planner.plan(self.knobs, self.now)
        assert plan is not None, "work waits and nothing is planned"
        self.take_in(plan)
        self.run(plan)
        self.planner.check()


TestPlannerMachine = PlannerMachine.TestCase
TestPlannerMachine.settings = settings(
    max_examples=examples(150), stateful_step_count=40, deadline=None
)
