"""Changes of knobs, all or none, and the user's own policy: adopted by the engine, then published.

Values were checked where they came in (`Knobs.changed`); here they are `Knobs`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import replace

from llmserve.core.clock import Clock
from llmserve.core.knobs import SPECS, Applied, KnobBoard, KnobError, Knobs, differences
from llmserve.core.validation import flag
from llmserve.engines.base import Engine, Evicts
from llmserve.engines.limits import clamp
from llmserve.scheduling.scheduler import Scheduler
from llmserve.scheduling.user_policy import Choice, PolicyError, UserPolicy
from llmserve.serving.publisher import Publisher

log = logging.getLogger(__name__)


class KnobUpdates:
    def __init__(
        self,
        engine: Engine,
        board: KnobBoard,
        scheduler: Scheduler,
        clock: Clock,
        publisher: Publisher,
    ) -> None:
        self.policy_error: PolicyError | None = None
        self._engine = engine
        self._board = board
        self._scheduler = scheduler
        self._clock = clock
        self._publisher = publisher
        self._lock = asyncio.Lock()

    async def change(
        self, names: Collection[str], requested: Knobs, source: str, *,
        up: bool, evict: object = False,
    ) -> Applied:
        """Take these knobs from `requested`. An engine that is not `up` adopts them when it is.

        KnobError where this server cannot: no function for `policy=custom`, no eviction.
        """
        evicting = self._evicting(evict)
        async with self._lock:
            before = self._board.current
            started = self._clock.now()
            requested = before.taking(names, requested)
            if requested.policy == "custom" and self._scheduler.user_policy is None:
                raise KnobError("policy", "register a function first, with @session.policy")
            applied = Applied(values=requested, changed=differences(before, requested))
            if any(SPECS[name].layer == "engine" for name in applied.changed):
                part = await self._engine.apply(requested) if up else self._later(requested)
                applied = replace(part, changed=differences(before, part.values))
            self._board.update(applied.changed, applied.values)
            if evicting is not None and up:
                applied = replace(applied, evicted=await evicting.evict())
            applied = replace(applied, ms=(self._clock.now() - started) * 1e3)
            self._publisher.knobs_changed(applied, source)
        return applied

    def _later(self, requested: Knobs) -> Applied:
        """Adopted when the engine comes up; what it will clamp is clamped now."""
        values, clamps = clamp(requested, self._engine.info.ceilings)
        return Applied(values=values, changed={}, clamped=clamps)

    async def adopt(self) -> None:
        """Give all knobs to an engine that has just started."""
        before = self._board.current
        applied = await self._engine.apply(before)
        changed = differences(before, applied.values)
        self._board.update(changed, applied.values)
        self._publisher.knobs_changed(replace(applied, changed=changed), "start")

    def _evicting(self, evict: object) -> Evicts | None:
        """The engine, where it is to preempt; KnobError where it cannot."""
        try:
            if not flag("evict", evict):
                return None
        except ValueError as error:
            raise KnobError("evict", str(error)) from None
        if isinstance(self._engine, Evicts):
            return self._engine
        raise KnobError(
            "evict",
            f"the {self._engine.info.engine} engine cannot preempt on demand: leave evict out, and "
            "requests above a lowered max_num_seqs end first",
        )

    def use(self, function: Choice) -> UserPolicy:
        """What `policy=custom` means from now on."""
        policy = UserPolicy(function, self._clock.now)
        self.policy_error = None
        self._scheduler.use(policy, self._clock.now())
        return policy

    def drop_broken_policy(self) -> None:
        """Where a user's policy failed: the scheduler goes on by fifo already."""
        if (broken := self._scheduler.take_broken()) is None:
            return
        log.error("the policy was removed, fifo goes on: %s", broken, exc_info=broken)
        self.policy_error = broken
        before, after = self._board.update(("policy",), Knobs(policy="fifo"))
        applied = Applied(values=after, changed=differences(before, after))
        self._publisher.knobs_changed(applied, f"policy removed: {broken}")
