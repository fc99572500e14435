"""Changes of knobs, all or none, and the user's own policy: asked, adopted by the engine, told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, cast

from llmserve.core.clock import Clock
from llmserve.core.knobs import SPECS, Applied, KnobBoard, KnobError, Knobs, differences
from llmserve.core.validation import flag
from llmserve.engines.base import Engine
from llmserve.engines.limits import clamp
from llmserve.scheduling.scheduler import Scheduler
from llmserve.scheduling.user_policy import Choice, PolicyError, UserPolicy
from llmserve.serving.publisher import Publisher

log = logging.getLogger(__name__)


class Evicts(Protocol):
    """An engine that lists "evict" in `info.supports`."""

    async def evict(self) -> tuple[str, ...]:
        """Preempt what runs above `max_num_seqs` at once; the ids of those. They lose no token."""
        ...


class KnobUpdates:
    def __init__(
        self,
        engine: Engine,
        board: KnobBoard,
        scheduler: Scheduler,
        clock: Clock,
        tell: Publisher,
    ) -> None:
        self.policy_error: PolicyError | None = None
        self._engine = engine
        self._board = board
        self._scheduler = scheduler
        self._clock = clock
        self._tell = tell
        self._lock = asyncio.Lock()

    async def change(
        self, changes: Mapping[str, object], source: str, *, up: bool, evict: object = False
    ) -> Applied:
        """KnobError where one is wrong. An engine that is not `up` adopts them when it is."""
        self._check_eviction(evict)
        async with self._lock:
            before = self._board.current
            started = self._clock.now()
            asked = before.changed(changes)
            if asked.policy == "custom" and self._scheduler.user_policy is None:
                raise KnobError("policy", "register a function first, with @session.policy")
            applied = Applied(values=asked, changed=differences(before, asked))
            if any(SPECS[name].layer == "engine" for name in applied.changed):
                part = await self._engine.apply(asked) if up else self._later(asked)
                applied = replace(part, changed=differences(before, part.values))
            self._board.update({name: after for name, (_, after) in applied.changed.items()})
            if evict and up:
                applied = replace(applied, evicted=await cast("Evicts", self._engine).evict())
            applied = replace(applied, ms=(self._clock.now() - started) * 1e3)
            self._tell.changed(applied, source)
        return applied

    def _later(self, asked: Knobs) -> Applied:
        """Adopted when the engine comes up, but who asks for too much is told now."""
        values, clamps = clamp(asked, self._engine.info.ceilings)
        return Applied(values=values, changed={}, clamped=clamps)

    async def adopt(self) -> None:
        """Hand all knobs to an engine that has just started."""
        before = self._board.current
        applied = await self._engine.apply(before)
        changed = differences(before, applied.values)
        self._board.update({name: after for name, (_, after) in changed.items()})
        self._tell.changed(replace(applied, changed=changed), "start")

    def _check_eviction(self, evict: object) -> None:
        try:
            flag("evict", evict)
        except ValueError as error:
            raise KnobError("evict", str(error)) from None
        if evict and "evict" not in (info := self._engine.info).supports:
            raise KnobError(
                "evict",
                f"the {info.engine} engine cannot preempt on demand: leave evict out, and requests "
                "above a lowered max_num_seqs end first",
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
        before, after = self._board.update({"policy": "fifo"})
        applied = Applied(values=after, changed=differences(before, after))
        self._tell.changed(applied, f"policy removed: {broken}")
