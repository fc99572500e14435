"""The step planner of a simulation: sequences that decode beside each other advance as one group.

While all that run fit the token budget, each decoding sequence takes one token a step. So nothing
about them needs to be looked at one by one: a step of the group is a count. Who ends next is the
top of a heap; the blocks that a step needs are counted by each one's place in its last block.
All rules are `StepPlanner`'s. Where a step may have to preempt, or the budget is short, the group
dissolves and the step is planned there.

Only for steps without a model: the group's members are no rows of a plan, their newest tokens are
zeros until a key of them is wanted (`fill` writes them then), and nobody may need to move their KV.

Invariants (`check` asserts them):
- every running sequence is loose or in the group; those that prefill are loose;
- a member of the group has had a token in every step since it joined, and was planned in the last.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping

from llmserve.engines.batching.prefix_cache import Match
from llmserve.engines.batching.sequence import Draft, Plan, Sequence
from llmserve.engines.batching.step_planner import StepPlanner


class _Member:
    """A sequence in the group. Its own figures are those of the step in which it joined."""

    __slots__ = ("ends", "muted", "number", "place", "seq", "since", "tail")

    def __init__(self, seq: Sequence, number: int, tick: int, block_size: int) -> None:
        self.seq, self.number, self.since = seq, number, tick
        self.ends = tick + seq.limit - len(seq.tokens)
        """It is full when the group has made so many steps."""
        self.place = (tick - seq.computed) % block_size
        """It needs a new block in steps of this number, by the size of a block."""
        self.tail = b""
        self.muted = False

    def __lt__(self, other: _Member) -> bool:
        return (self.ends, self.number) < (other.ends, other.number)


class LockstepPlanner(StepPlanner):
    def __init__(
        self,
        *,
        kv_blocks: int,
        block_size: int,
        max_model_len: int,
        prefix_caching: bool = False,
        fill: Callable[[Sequence], None],
    ) -> None:
        super().__init__(
            kv_blocks=kv_blocks, block_size=block_size, max_model_len=max_model_len,
            prefix_caching=prefix_caching, fill=fill,
        )  # fmt: skip
        self._cache.catch_up = self._catch_up
        self._numbers = itertools.count()
        self._loose: dict[str, tuple[int, Sequence]] = {}
        self._group: dict[str, _Member] = {}
        self._tick = 0  # steps that the group has made
        self._planned = 0  # number of the last plan with the group in it
        self._in_flight = False
        self._wanting = [0] * block_size  # members by their place
        self._stored = 0  # tokens of the members' KV, less the steps made when they joined
        self._ends: list[_Member] = []  # a heap, with some that have left
        self._blocks: list[int] = []  # of the members together, beside those that they came with
        self.by_tenant: dict[str, int] = {}
        """Members whose tokens somebody reads."""
        self.loosened: list[Sequence] = []
        """Those that the last plan took out of the group, for its owner to look at and clear."""

    @property
    def kv_used_before(self) -> int:
        """Blocks used before the group's step that is planned now."""
        return self.pool.used - self._wanting[self._tick % self.pool.block_size]

    @property
    def reads(self) -> int:
        """Tokens of KV that the group reads in its step that is planned now, the new ones too."""
        return self._stored + len(self._group) * (self._tick + 1)

    def heard(self) -> dict[str, str]:
        """The members whose tokens somebody reads, each with its tenant."""
        return {name: one.seq.request.tenant for name, one in self._group.items() if not one.muted}

    def commit(self, plan: Plan, sampled: Mapping[str, int]) -> None:
        super().commit(plan, sampled)
        if plan.together:
            self._tick += 1
            self._in_flight = False

    def take_full(self) -> list[Sequence]:
        """Members that are full since the step just committed, by admission; they are loose now."""
        full: list[Sequence] = []
        ends = self._ends
        while ends and ends[0].ends <= self._tick:
            member = heapq.heappop(ends)
            if self._group.get(member.seq.id) is member:
                self._loosen(member)
                full.append(member.seq)
        return full

    def generated(self, seq: Sequence) -> int:
        """Tokens of the sequence's reply, those of the group's steps too."""
        member = self._group.get(seq.id)
        return seq.generated if member is None else seq.generated + self._tick - member.since

    def mute(self, request_id: str) -> None:
        """Nobody reads this sequence's tokens any more, though it is still here."""
        member = self._group.get(request_id)
        if member is not None and not member.muted:
            member.muted = True
            self._uncount(member)

    def alike(self, plan: Plan, most: int) -> int:
        """How many steps, up to `most`, can follow a plan not yet committed that are just like it,
        so that nobody ends before the last of them."""
        if plan.rows or self._loose or not self._group:
            return 0
        ends = self._ends
        while self._group.get(ends[0].seq.id) is not ends[0]:
            heapq.heappop(ends)
        most = min(most, ends[0].ends - self._tick - 1)
        while most > 0 and self._wanted(most) > self.pool.free:
            most //= 2
        return max(0, most)

    def skip(self, steps: int) -> None:
        """So many steps that are `alike` were run: the last of those is the one planned now."""
        self.pool.take(self._blocks, self._wanted(steps))
        self._tick += steps
        self._plans += steps
        self._planned = self._plans

    def remove(self, request_id: str, *, keep: bool = True) -> Sequence | None:
        if (member := self._group.get(request_id)) is not None:
            self._loosen(member)
        self._loose.pop(request_id, None)
        return super().remove(request_id, keep=keep)

    def check(self) -> None:
        running = self._running.keys()
        assert self._loose.keys() | self._group.keys() == running, "neither loose nor in the group"
        assert not self._loose.keys() & self._group.keys(), "loose and in the group"
        assert not self._prefilling.keys() & self._group.keys(), "a member of the group prefills"
        assert sum(self._wanting) == len(self._group), "places are miscounted"
        stored = sum(one.seq.computed - one.since for one in self._group.values())
        assert self._stored == stored, "what the group reads is miscounted"
        assert not self._in_flight, "between a commit and the next plan"
        self._dissolve()
        assert not self._blocks, "blocks of nobody"
        assert not self._cache.late, "none is late"
        super().check()

    def _plan_running(self, draft: Draft) -> None:
        if len(self._running) > draft.budget or not self._join():
            self._dissolve()
            super()._plan_running(draft)
            return
        wanted = self._wanting[self._tick % self.pool.block_size]
        if wanted + self._promised() > self.pool.free:
            self._dissolve()
            super()._plan_running(draft)
            return
        most = draft.budget
        if self._group:
            self.pool.take(self._blocks, wanted)
            self._in_flight = True
            self._planned = self._plans + 1
            draft.together = len(self._group)
            draft.budget -= draft.together
        for seq in [*self._prefilling.values()]:
            if draft.budget > 0:
                self._plan_one(draft, seq, most)

    def _admit_one(self, draft: Draft, seq: Sequence, match: Match) -> None:
        self._loose[seq.id] = next(self._numbers), seq
        super()._admit_one(draft, seq, match)

    def _preempt(self, seq: Sequence, *, keep: bool) -> None:
        del self._loose[seq.id]  # the group has dissolved
        super()._preempt(seq, keep=keep)

    def _join(self) -> bool:
        """Take those into the group that decode; False where one had no token in the last plan."""
        if len(self._loose) == len(self._prefilling):
            return True
        decoding = [one for one in self._loose.values() if one[1].id not in self._prefilling]
        if any(seq.served != self._plans for _, seq in decoding):
            return False
        for number, seq in decoding:
            del self._loose[seq.id]
            member = _Member(seq, number, self._tick, self.pool.block_size)
            self._group[seq.id] = member
            self._wanting[member.place] += 1
            self._stored += seq.computed - self._tick
            heapq.heappush(self._ends, member)
            tenant = seq.request.tenant
            self.by_tenant[tenant] = self.by_tenant.get(tenant, 0) + 1
            if self._cache.enabled:
                self._file(member)
        return True

    def _dissolve(self) -> None:
        for member in [*self._group.values()]:
            self._loosen(member)
            self._cache.grow(member.seq)
            self.loosened.append(member.seq)
        self._ends.clear()

    def _loosen(self, member: _Member) -> None:
        """Let a member go on by itself, with its figures as they are."""
        seq = member.seq
        del self._group[seq.id]
        self._loose[seq.id] = member.number, seq
        self._wanting[member.place] -= 1
        self._stored -= seq.computed - member.since
        if not member.muted:
            self._uncount(member)
        if self._cache.enabled:
            self._unfile(member)
        self._update(member)
        owned = self.pool.needed(seq.computed + self._in_flight) - len(seq.blocks)
        if owned:
            seq.blocks += self._blocks[-owned:]
            del self._blocks[-owned:]
        seq.served = self._planned

    def _update(self, member: _Member) -> None:
        seq, steps = member.seq, self._tick - member.since
        seq.computed += steps
        seq.tokens += [0] * steps
        member.since = self._tick

    def _uncount(self, member: _Member) -> None:
        tenant = member.seq.request.tenant
        left = self.by_tenant[tenant] - 1
        if left:
            self.by_tenant[tenant] = left
        else:
            del self.by_tenant[tenant]

    def _file(self, member: _Member) -> None:
        seq = member.seq
        member.tail = seq.keys[-1] if seq.keys else b""
        self._cache.late.setdefault(member.tail, {})[seq.id] = seq

    def _unfile(self, member: _Member) -> None:
        late = self._cache.late[member.tail]
        del late[member.seq.id]
        if not late:
            del self._cache.late[member.tail]

    def _catch_up(self, key: bytes) -> None:
        """Note which blocks members hold by now whose last noted one has this key."""
        size = self.pool.block_size
        for request_id in [*self._cache.late[key]]:
            member = self._group[request_id]
            computed = member.seq.computed + self._tick - member.since
            if computed // size > len(member.seq.keys):
                self._unfile(member)
                self._update(member)
                self._cache.grow(member.seq)
                self._file(member)

    def _wanted(self, steps: int) -> int:
        """Blocks that the group needs for so many steps behind the one planned."""
        size, first = self.pool.block_size, self._tick + 1
        rounds, rest = divmod(steps, size)
        wanted = rounds * len(self._group)
        for tick in range(first, first + rest):
            wanted += self._wanting[tick % size]
        return wanted
