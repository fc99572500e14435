"""Why it is slow: TTFT and ITL p95 of the last seconds, divided by cause, and the knob that binds.

    why = explain(events, knobs)            # pure: of a trace, or of any list of events
    fold = WhyFold(); bus.attach(fold); why = fold.explain(knobs, now)     # the same, live

The parts of a p95 are those of the samples around it (the ranks from 90 % up), scaled to it.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable

from llmserve.core.events import (
    Dispatched,
    Event,
    Finished,
    FirstToken,
    KnobsChanged,
    Rejection,
    StepRecorded,
    Submitted,
    TokensEmitted,
    WaitReasonChanged,
)
from llmserve.core.knobs import Knobs
from llmserve.observe.attributed_waits import AttributedWaits
from llmserve.observe.attribution_report import Why
from llmserve.observe.time_by_cause import CAUSES, CauseClock
from llmserve.observe.window import Samples

WINDOW_S = 30.0
_SAMPLES = 32_768
_CHANGES = 200


class WhyFold:
    """Attach to an EventBus; `explain` from any thread. Memory is bounded, about 8 MB at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clock = CauseClock()
        self._firsts = Samples(2 + len(CAUSES), _SAMPLES)  # t, TTFT, its parts
        self._gaps = Samples(3 + len(CAUSES), _SAMPLES)  # t, gap, its parts, tokens behind it
        self._others = Samples(2, _SAMPLES)  # t, tokens that ended no gap
        self._changes: deque[KnobsChanged] = deque(maxlen=_CHANGES)
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        """Fold one event; those that say nothing about time are passed over."""
        with self._lock:
            if event.t > self._last:
                self._last = event.t
            if isinstance(event, TokensEmitted):
                for request_id, n in event.counts.items():
                    self._deliver(request_id, event.t, n)
            elif isinstance(event, StepRecorded):
                self._clock.step(event.record)
            elif isinstance(event, Submitted):
                self._clock.submit(event.request_id, event.t)
            elif isinstance(event, WaitReasonChanged):
                if event.step is None:  # the engine's own are in its steps, with the time of each
                    self._clock.wait(event.request_id, event.reason, event.t)
            elif isinstance(event, Dispatched):
                self._clock.dispatch(event.request_id, event.t)
            elif isinstance(event, FirstToken):
                self._deliver(event.request_id, event.t, 0)
            elif isinstance(event, Finished | Rejection):
                self._clock.end(event.request_id)
            elif isinstance(event, KnobsChanged):
                self._changes.append(event)

    def explain(self, knobs: Knobs, now: float | None = None, window_s: float = WINDOW_S) -> Why:
        """Explain the window that ends `now` (None: at the last event)."""
        with self._lock:
            until = self._last if now is None else now
            last = {name: c.t for c in self._changes for name in c.changed}
            after = min((until, *last.values())) - window_s  # both sides of each knob's last change
            firsts = self._firsts.window(after, until)
            gaps = self._gaps.window(after, until)
            others = self._others.window(after, until)
            changes = list(self._changes)
            waiting = Counter(
                CAUSES[request.cause]
                for request in self._clock.live.values()
                if not request.has_token
            )
        measured = AttributedWaits(firsts, gaps, others, changes, knobs, until, window_s)
        return Why(
            t=until,
            window_s=window_s,
            ttft=measured.breakdown("TTFT"),
            itl=measured.breakdown("ITL"),
            waiting=dict(waiting.most_common()),
        )

    def changes(self) -> list[KnobsChanged]:
        """The newest changes of knobs, oldest first."""
        with self._lock:
            return list(self._changes)

    def _deliver(self, request_id: str, t: float, tokens: int) -> None:
        span = self._clock.deliver(request_id, t)
        if span is not None:
            first, length, parts = span
            if not first:
                self._gaps.append(t, length, *parts, tokens)
                return
            self._firsts.append(t, length, *parts)
        if tokens:
            self._others.append(t, tokens)


def explain(
    events: Iterable[Event], knobs: Knobs, now: float | None = None, window_s: float = WINDOW_S
) -> Why:
    """Why the requests of these events took as long as they did; `knobs` are those in force at the
    last of them."""
    fold = WhyFold()
    for event in events:
        fold(event)
    return fold.explain(knobs, now, window_s)
