"""The step planner: iteration-level continuous batching as a pure state machine.

    planner.add(request, now)               # whenever a request comes
    plan = planner.plan(knobs, now)         # before each step
    ...run plan.rows, draw a token for each row that `samples`...
    planner.commit(plan, {id: token})       # after it
    planner.remove(id)                      # finished, or its client left: even between those two
    planner.record(plan, index, start, duration)

Invariants (`check` asserts them):
- every sequence is in exactly one of waiting and running; a waiting one has no KV;
- every KV block is free or owned by one running sequence, which owns just what `computed` needs;
- a sequence starts with a copy of what is known of its tokens (`prefix.py`), but never of the last,
  nor of those whose log-probabilities are still to come: each of these is computed once for them;
- the sequence that has run longest never loses its KV, so some request always advances.

The rules. Running sequences go first, decodes before prefills, each group by admission; what is
left of the token budget admits from the queue, first come first served, and nobody overtakes.
One is admitted only when the free blocks cover all its known tokens beside those that the running
still have to store; with `min_decode_slots`, only while fewer prefill than the other slots are,
or none does; and not while others are computing most of what it would compute, which it then
copies. When a running one needs a block and none is free, the most recently admitted (perhaps
itself) is preempted: it loses its KV, goes to the front of the queue and later recomputes prompt
and reply so far as prefill. No one is admitted in a step that preempts, nor after memory itself ran
out (`give_way`) until one has left. Should more be
running than the token budget has tokens, the least recently served go first, one token each, so
that n running with a budget of b are each served at least once in ceil(n / b) steps.

Static batching closes a batch of up to max_num_seqs and admits no other until all its members
are finished. The padding of a classic static batch is not simulated: finished members cost
nothing, their slots only stay empty.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, ValuesView
from itertools import islice
from sys import maxsize

from llmserve.core.knobs import Knobs
from llmserve.core.types import Request, StepRecord, StepRow, WaitReason
from llmserve.engines.batching.block_pool import BlockPool
from llmserve.engines.batching.cap_watch import CapWatch
from llmserve.engines.batching.prefix_cache import Match, Move, PrefixCache
from llmserve.engines.batching.sequence import Draft, Plan, Sequence

EARLY_S = 1e-6
"""A timer may fire this early and still close a batch window, or rounding would spin."""


class StepPlanner:
    """Plans steps for one engine. `plan` and `commit` alternate; the rest may come in between."""

    def __init__(
        self,
        *,
        kv_blocks: int,
        block_size: int,
        max_model_len: int,
        prefix_caching: bool = False,
        scores_per_step: int = maxsize,
        fill: Callable[[Sequence], None] | None = None,
    ) -> None:
        """scores_per_step: of how many tokens of prompts a step may bring log-probabilities. Each
        takes memory for the logits of a whole vocabulary.

        fill: of an owner without a model, who has no KV to move. It is called before the tokens of
        a sequence are read: those committed undrawn are drawn then.
        """
        self.pool = BlockPool(kv_blocks, block_size)
        self._cache = PrefixCache(self.pool, enabled=prefix_caching, fill=fill)
        self.max_model_len = max_model_len
        self._scores_per_step = max(1, scores_per_step)
        self._waiting: OrderedDict[str, Sequence] = OrderedDict()
        self._running: dict[str, Sequence] = {}  # in order of admission
        self._prefilling: dict[str, Sequence] = {}  # those of them that still prefill
        self._batch: set[str] = set()  # unfinished members of the closed static batch
        self._unexplained: list[Sequence] = []  # joined the queue since the last plan
        self._plans = 0
        self._short = False  # memory ran out, and nobody has left since
        self._caps = CapWatch()

    @property
    def waiting(self) -> ValuesView[Sequence]:
        return self._waiting.values()

    @property
    def running(self) -> ValuesView[Sequence]:
        return self._running.values()

    @property
    def kv_used_blocks(self) -> int:
        return self.pool.used

    @property
    def room(self) -> int:
        """The most tokens that prompt and reply of one request may have together.

        The last token of a reply is never read, so its KV is never stored: hence the 1.
        """
        return min(self.max_model_len, self.pool.capacity_tokens + 1)

    def get(self, request_id: str) -> Sequence | None:
        return self._running.get(request_id) or self._waiting.get(request_id)

    def add(self, request: Request, now: float) -> Sequence:
        """Put a request at the end of the queue; ValueError where it can never run."""
        prompt = len(request.prompt_ids)
        if not prompt:
            raise ValueError("the prompt is empty")
        if self.get(request.id):
            raise ValueError(f"request {request.id!r} is already here")
        if prompt + 1 > self.room:
            raise ValueError(f"a prompt of {prompt} tokens and one more exceed {self.room}")
        seq = Sequence(request, now, min(self.room, prompt + request.sampling.max_tokens))
        self._waiting[request.id] = seq
        self._unexplained.append(seq)
        return seq

    def remove(self, request_id: str, *, keep: bool = True) -> Sequence | None:
        """Forget a request, finished or given up; its blocks are free at once. None: not here.

        Not `keep` where what it computed cannot be trusted.
        """
        seq = self._running.pop(request_id, None)
        if seq:
            self._short = False
            self._prefilling.pop(request_id, None)
            self._cache.leave(seq, keep=keep)
        else:
            seq = self._waiting.pop(request_id, None)
        self._batch.discard(request_id)
        return seq

    def take_moves(self) -> list[Move]:
        """Return the moves of stored KV due, in order: ask after each plan and removal, and make
        them before slots are freed or rows run."""
        moves, self._cache.moves = self._cache.moves, []
        return moves

    def reset_cache(self) -> None:
        """Forget the KV of all who left, and moves not yet made."""
        self._cache.clear()

    def give_way(self, plan: Plan, victims: Iterable[Sequence]) -> None:
        """Memory is shorter than the blocks say: preempt these of the running, the last first, out
        of a plan that has not been run. Nothing of theirs is kept, and nobody is let in beside
        others until one of these leaves."""
        for seq in victims:
            self._preempt(seq, keep=False)
            plan.preempted.append(seq)
        plan.rows = [row for row in plan.rows if row.seq.id in self._running]
        self._short = True

    def plan(self, knobs: Knobs, now: float) -> Plan | None:
        """The next step; None when there is nothing to do now (`wake_at` says until when)."""
        self._form_batch(knobs, now)
        draft = Draft(
            knobs.max_num_batched_tokens, knobs.long_prefill_token_threshold, self._scores_per_step
        )
        self._plan_running(draft)
        reason = self._admit(draft, knobs)
        if not draft.rows and not draft.together:
            return None
        self._plans += 1
        for row in draft.rows.values():
            row.seq.served = self._plans
        return Plan(
            rows=list(draft.rows.values()),
            max_num_seqs=knobs.max_num_seqs,
            max_num_batched_tokens=knobs.max_num_batched_tokens,
            together=draft.together,
            preempted=draft.preempted,
            cached_tokens=draft.cached,
            wait_reasons=self._explain(reason),
            satisfied=self._caps.met(knobs, len(self._running)),
        )

    def wake_at(self, knobs: Knobs, now: float) -> float | None:
        """When to plan again though nothing else happens: a batch window closes."""
        closes = self._window_closes(knobs)
        return closes if closes is not None and closes > now + EARLY_S else None

    def commit(self, plan: Plan, sampled: Mapping[str, int]) -> None:
        """The step was run. `sampled` has a token for each row that samples and is still here."""
        for seq, _, tokens, kind, samples in plan.rows:
            if self._running.get(seq.id) is seq:
                seq.computed += tokens
                if kind == "prefill" and seq.computed >= seq.prefill_end:
                    del self._prefilling[seq.id]
                if seq.scoring:
                    seq.scored = max(seq.scored, seq.computed)
                    seq.scoring = seq.scored < seq.prompt_tokens
                self._cache.grow(seq)
                if samples:
                    seq.tokens.append(sampled[seq.id])

    def record(self, plan: Plan, index: int, start_s: float, duration_s: float) -> StepRecord:
        """The step as it is published: call it after commit and after removing the finished."""
        return StepRecord(
            index=index,
            start_s=start_s,
            duration_s=duration_s,
            rows=tuple(StepRow(seq.id, kind, tokens) for seq, _, tokens, kind, _ in plan.rows),
            running=len(self._running),
            waiting=len(self._waiting),
            kv_used_tokens=self.pool.used * self.pool.block_size,
            kv_capacity_tokens=self.pool.capacity_tokens,
            max_num_seqs=plan.max_num_seqs,
            max_num_batched_tokens=plan.max_num_batched_tokens,
            preempted=tuple(seq.id for seq in plan.preempted),
            wait_reasons=tuple(plan.wait_reasons),
            satisfied=tuple(plan.satisfied),
            cached_tokens=plan.cached_tokens,
        )

    def check(self) -> None:
        """Assert the invariants; between a commit and the next plan."""
        assert not self._waiting.keys() & self._running.keys()
        assert self._batch <= self._waiting.keys() | self._running.keys()
        for seq in self._waiting.values():
            assert (seq.computed, seq.blocks) == (0, []), f"{seq} waits with KV"
        for seq in self._running.values():
            assert 0 < seq.computed <= len(seq.tokens) <= seq.limit, seq
            assert len(seq.blocks) == self.pool.needed(seq.computed), seq
        prefilling = [seq for seq in self._running.values() if seq.computed < seq.prefill_end]
        assert [*self._prefilling.values()] == prefilling, "the index of those that prefill is off"
        self.pool.check(seq.blocks for seq in self._running.values())
        self._cache.check(self._running.values())

    def _plan_running(self, draft: Draft) -> None:
        if len(self._running) > draft.budget:
            order = sorted(self._running.values(), key=lambda seq: seq.served)
        else:
            order = [*self._running.values()]
            if self._prefilling:
                order = [seq for seq in order if seq.id not in self._prefilling]
                order += self._prefilling.values()
        most = 1 if len(order) > draft.budget else draft.budget
        for seq in order:
            if seq.id in self._running and draft.budget > 0:
                self._plan_one(draft, seq, most)

    def _plan_one(self, draft: Draft, seq: Sequence, most: int) -> None:
        """Give a running sequence its row and blocks, from others if it must."""
        assert not seq.full, f"{seq} is full: the engine should have removed it"
        tokens = draft.chunk(seq, most)
        if not tokens:  # others bring all the log-probabilities of this step
            return
        missing = self.pool.needed(seq.computed + tokens) - len(seq.blocks)
        while missing > self.pool.free:
            victim = self._running[next(reversed(self._running))]
            draft.drop(victim)
            draft.preempted.append(victim)
            self._preempt(victim, keep=True)
            if victim is seq:
                return
        self._cache.take(seq, missing)
        draft.put(seq, tokens)

    def _preempt(self, seq: Sequence, *, keep: bool) -> None:
        del self._running[seq.id]
        self._prefilling.pop(seq.id, None)
        self._cache.leave(seq, keep=keep)
        seq.computed = 0
        seq.preemptions += 1
        self._waiting[seq.id] = seq
        self._waiting.move_to_end(seq.id, last=False)
        self._unexplained.append(seq)

    def _admit(self, draft: Draft, knobs: Knobs) -> WaitReason | None:
        """Admit from the queue as far as it goes; why its head must wait, if there is one."""
        if not self._waiting:
            return None
        promised = self._promised()
        while self._waiting:
            seq = next(iter(self._waiting.values()))
            needed = self.pool.needed(len(seq.tokens))
            reason = self._obstacle(draft, knobs, seq, needed + promised)
            if reason:
                return reason
            match = self._cache.match(seq)
            if match.worth_waiting:
                return "prefix"
            self._admit_one(draft, seq, match)
            promised += needed - len(seq.blocks)
        return None

    def _promised(self) -> int:
        """Blocks that the running still need for what they must prefill."""
        return sum(
            self.pool.needed(seq.prefill_end) - len(seq.blocks)
            for seq in self._prefilling.values()
        )

    def _admit_one(self, draft: Draft, seq: Sequence, match: Match) -> None:
        del self._waiting[seq.id]
        self._running[seq.id] = self._prefilling[seq.id] = seq
        seq.wait_reason = None
        seq.prefill_end = len(seq.tokens)
        self._cache.enter(seq, match)
        draft.cached += seq.computed
        tokens = draft.chunk(seq, draft.budget)
        self._cache.take(seq, self.pool.needed(seq.computed + tokens))
        draft.put(seq, tokens)

    def _obstacle(
        self, draft: Draft, knobs: Knobs, seq: Sequence, blocks: int
    ) -> WaitReason | None:
        if knobs.batching == "static" and seq.id not in self._batch:
            return "batch"
        if len(self._running) >= (1 if knobs.batching == "none" else knobs.max_num_seqs):
            return "cap"
        if knobs.min_decode_slots and self._prefills_are_full(knobs):
            return "cap"
        short = self._short and self._running
        if draft.preempted or short or blocks > self.pool.free:
            return "kv"
        if seq.scoring and draft.scores <= 0:
            return "token_budget"
        return "token_budget" if draft.budget <= 0 else None

    def _prefills_are_full(self, knobs: Knobs) -> bool:
        """The slots that `min_decode_slots` leaves to prefills are taken; one is always left."""
        return len(self._prefilling) >= max(1, knobs.max_num_seqs - knobs.min_decode_slots)

    def _form_batch(self, knobs: Knobs, now: float) -> None:
        closes = self._window_closes(knobs)
        if knobs.batching != "static":
            self._batch.clear()
        elif closes is not None and closes <= now + EARLY_S:
            self._batch.update(islice(self._waiting, knobs.max_num_seqs))

    def _window_closes(self, knobs: Knobs) -> float | None:
        """When the next static batch may start; None where none is being formed."""
        if knobs.batching != "static" or self._batch or self._running or not self._waiting:
            return None
        first = next(iter(self._waiting.values())).added_s
        full = len(self._waiting) >= knobs.max_num_seqs
        return first if full else first + knobs.batch_window_ms / 1000

    def _explain(self, reason: WaitReason | None) -> list[tuple[str, WaitReason]]:
        """Changed reasons: of those new in the queue, and of its head, which keeps all back.

        Those behind keep the reason last reported until they are the head, so that a step costs no
        more for a long queue.
        """
        changed: list[tuple[str, WaitReason]] = []
        if reason:
            self._unexplained.append(next(iter(self._waiting.values())))
            for seq in self._unexplained:
                if self._waiting.get(seq.id) is seq and seq.wait_reason != reason:
                    seq.wait_reason = reason
                    changed.append((seq.id, reason))
        self._unexplained.clear()
        return changed
