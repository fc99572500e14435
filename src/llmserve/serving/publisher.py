"""Publishes all request and engine events, each thing that happens as one event, and only that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from llmserve.core.clock import Clock
from llmserve.core.events import (
    CacheLooked,
    DeviceSampled,
    Dispatched,
    EventBus,
    FairnessSampled,
    Finished,
    FirstToken,
    KnobsChanged,
    KnobsSatisfied,
    Rejection,
    StepRecorded,
    Submitted,
    WaitReasonChanged,
)
from llmserve.core.knobs import Applied
from llmserve.core.types import FinishReason, Request, StepRecord, Usage, WaitReason
from llmserve.scheduling.admission import Rejected
from llmserve.scheduling.scheduler import Fairness

_FAIRNESS_S = 0.2
"""The gap of service between tenants is published at most so often."""


def publish_step(bus: EventBus, record: StepRecord) -> None:
    """The sink of an engine's steps: called before that step's chunks arrive."""
    now = record.start_s + record.duration_s
    for request_id, reason in record.wait_reasons:
        bus.publish(
            WaitReasonChanged(t=now, request_id=request_id, reason=reason, step=record.index)
        )
    bus.publish(StepRecorded(t=now, record=record))
    for name in record.satisfied:
        bus.publish(KnobsSatisfied(t=now, name=name, step=record.index))


class Publisher:
    """Publishes events, one method for each. `t` is when it happened, where that is not now."""

    def __init__(self, bus: EventBus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._fairness_at = -math.inf

    def submitted(self, request: Request) -> None:
        self._bus.publish(Submitted.of(request))

    def rejected(self, request: Request, rejected: Rejected) -> None:
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

    def wait_reasons(self, changed: Iterable[tuple[str, WaitReason]], t: float) -> None:
        for request_id, reason in changed:
            self._bus.publish(WaitReasonChanged(t=t, request_id=request_id, reason=reason))

    def dispatched(self, request_id: str, t: float) -> None:
        self._bus.publish(Dispatched(t=t, request_id=request_id))

    def first_token(self, request_id: str, t: float, cached_tokens: int = 0) -> None:
        self._bus.publish(FirstToken(t=t, request_id=request_id, cached_tokens=cached_tokens))

    def emitted(self, request_id: str, t: float, tokens: int) -> None:
        """Tokens of one request: part of one event with all that come at `t`, which is published
        before the next of any kind, or by `flush`."""
        self._bus.emitted(request_id, tokens, t)

    def flush(self) -> None:
        self._bus.flush()

    def finished(
        self,
        request_id: str,
        reason: FinishReason,
        usage: Usage,
        failure: Exception | str | None,
        *,
        t: float | None = None,
        cached_tokens: int | None = None,
    ) -> None:
        """`cached_tokens`: where they became known only now."""
        self._bus.publish(
            Finished(
                t=self._clock.now() if t is None else t,
                request_id=request_id,
                reason=reason,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                error=None if failure is None else str(failure),
                cached_tokens=cached_tokens,
            )
        )

    def cache_looked(self, request: Request, *, hit: bool) -> None:
        now = self._clock.now()
        self._bus.publish(
            CacheLooked(t=now, request_id=request.id, tenant=request.tenant, hit=hit)
        )

    def knobs_changed(self, applied: Applied, source: str) -> None:
        """Publish a change of knobs, where anything has changed."""
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
        """Publish a fairness sample, only where enough time has passed: it takes a walk over the
        tenants that wait."""
        now = self._clock.now()
        if now - self._fairness_at >= _FAIRNESS_S and (seen := look()) is not None:
            self._fairness_at = now
            self._bus.publish(
                FairnessSampled(t=now, gap=seen.gap, bound=seen.bound, tenants=seen.tenants)
            )

    def devices_sampled(self, samples: Iterable[DeviceSampled]) -> None:
        for sample in samples:
            self._bus.publish(sample)
