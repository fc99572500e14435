"""What the service tells the world: each thing that happens, as one event."""

from __future__ import annotations

import math
from collections.abc import Callable

from llmserve.core.clock import Clock
from llmserve.core.events import (
    EventBus,
    FairnessSampled,
    Finished,
    KnobsChanged,
    KnobsSatisfied,
    Rejection,
    StepRecorded,
    Submitted,
    WaitReasonChanged,
)
from llmserve.core.knobs import Applied
from llmserve.core.types import Chunk, Request, StepRecord
from llmserve.scheduling.admission import Rejected
from llmserve.scheduling.scheduler import Fairness
from llmserve.serving.stream import Stream

_FAIRNESS_S = 0.2
"""The gap of service between tenants is told at most so often."""


def publish_step(bus: EventBus, record: StepRecord) -> None:
    """The sink of an engine's steps: called before that step's chunks arrive."""
    now = record.start_s + record.duration_s
    for request_id, reason in record.held:
        bus.publish(
            WaitReasonChanged(t=now, request_id=request_id, reason=reason, step=record.index)
        )
    bus.publish(StepRecorded(t=now, record=record))
    for name in record.satisfied:
        bus.publish(KnobsSatisfied(t=now, name=name, step=record.index))


class Publisher:
    def __init__(self, bus: EventBus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._fairness_told = -math.inf

    def submitted(self, request: Request) -> None:
        self._bus.publish(Submitted.of(request))

    def refused(self, request: Request, rejected: Rejected) -> None:
        self._bus.publish(
            Rejection(
                t=self._clock.now(),
                request_id=request.id,
                tenant=request.tenant,
                priority=request.priority,
                reason=rejected.reason,
                retry_after_s=rejected.retry_after_s,
            )
        )

    def ended(self, stream: Stream, last: Chunk, failure: Exception | None) -> None:
        now = self._clock.now()
        stream.end(last, now, failure)
        usage = stream.usage
        self._bus.publish(
            Finished(
                t=now,
                request_id=stream.request.id,
                reason=last.finish_reason or "error",
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                error=None if failure is None else str(failure),
            )
        )

    def changed(self, applied: Applied, source: str) -> None:
        if applied.changed or applied.clamped:
            self._bus.publish(
                KnobsChanged(
                    t=self._clock.now(),
                    changed=applied.changed,
                    source=source,
                    step=applied.adopted_step,
                    ms=applied.ms,
                    clamped=tuple(clamp.name for clamp in applied.clamped),
                )
            )

    def fairness(self, look: Callable[[], Fairness | None]) -> None:
        """Look only where enough time has passed: it takes a walk over the tenants who wait."""
        now = self._clock.now()
        if now - self._fairness_told >= _FAIRNESS_S and (seen := look()) is not None:
            self._fairness_told = now
            self._bus.publish(
                FairnessSampled(t=now, gap=seen.gap, bound=seen.bound, tenants=seen.tenants)
            )
