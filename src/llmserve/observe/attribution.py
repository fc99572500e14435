"""Why it is slow: TTFT and ITL p95 of the last seconds, divided by cause, and the knob that binds.

    why = explain(events, knobs)            # pure: of a trace, or of any list of events
    fold = WhyFold(); bus.attach(fold); why = fold.explain(knobs, now)     # the same, live

The parts of a p95 are those of the samples around it (the ranks from 90 % up), scaled to it.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

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
from llmserve.observe.attribution_report import Breakdown, CausePart, Effect, Why
from llmserve.observe.time_by_cause import CAUSES, Cause, CauseClock
from llmserve.observe.window import Samples, Summary, between

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WINDOW_S = 30.0
_TAIL = 0.90
_SAMPLES = 32_768
_CHANGES = 200
_ENOUGH = 5
"""Samples on both sides of a knob's change before its effect is reported."""
_SPAN_S = 1.0
"""Tokens are counted per second over so much at least."""
_WORTH_NAMING = 0.25
"""A knob binds where the part that it rules is so much of the p95."""










class WhyFold:
    """Attach to an EventBus; `explain` from any thread. Memory is bounded, about 8 MB at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spending = CauseClock()
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
                self._deliver(event, event.n)
            elif isinstance(event, StepRecorded):
                self._spending.step(event.record)
            elif isinstance(event, Submitted):
                self._spending.submit(event.request_id, event.t)
            elif isinstance(event, WaitReasonChanged):
                if event.step is None:  # the engine's own are in its steps, with the time of each
                    self._spending.wait(event.request_id, event.reason, event.t)
            elif isinstance(event, Dispatched):
                self._spending.dispatch(event.request_id, event.t)
            elif isinstance(event, FirstToken):
                self._deliver(event, 0)
            elif isinstance(event, Finished | Rejection):
                self._spending.end(event.request_id)
            elif isinstance(event, KnobsChanged):
                self._changes.append(event)

    def explain(self, knobs: Knobs, now: float | None = None, window_s: float = WINDOW_S) -> Why:
        """Of the window that ends `now` (None: at the last event)."""
        with self._lock:
            until = self._last if now is None else now
            last = {name: c.t for c in self._changes for name in c.changed}
            after = min((until, *last.values())) - window_s  # both sides of each knob's last change
            firsts = self._firsts.window(after, until)
            gaps = self._gaps.window(after, until)
            others = self._others.window(after, until)
            changes = list(self._changes)
            waiting = Counter(
                CAUSES[spent.cause] for spent in self._spending.live.values() if not spent.has_token
            )
        measured = _Measured(firsts, gaps, others, changes, knobs, until, window_s)
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

    def _deliver(self, event: FirstToken | TokensEmitted, tokens: int) -> None:
        span = self._spending.deliver(event.request_id, event.t)
        if span is not None:
            first, length, parts = span
            if not first:
                self._gaps.append(event.t, length, *parts, tokens)
                return
            self._firsts.append(event.t, length, *parts)
        if tokens:
            self._others.append(event.t, tokens)


def explain(
    events: Iterable[Event], knobs: Knobs, now: float | None = None, window_s: float = WINDOW_S
) -> Why:
    """Why the requests of these events took as long as they did; `knobs` are those in force."""
    fold = WhyFold()
    for event in events:
        fold(event)
    return fold.explain(knobs, now, window_s)


def ruling_knob(cause: Cause, knobs: Knobs) -> str | None:
    """The live knob by which this part grows or shrinks; None where there is none."""
    match cause:
        case "cap" if knobs.batching == "none":
            return "batching"
        case "cap" if knobs.max_active is not None and knobs.max_active <= knobs.max_num_seqs:
            return "max_active"
        case "cap" | "preemption":
            return "max_num_seqs"
        case "policy":
            return "policy"
        case "in_flight":
            return "max_tokens_in_flight"
        case "token_budget":
            return "max_num_batched_tokens"
        case "tenant_limit" if knobs.max_active_per_tenant is None:
            return "kv_share_per_tenant"
        case "tenant_limit":
            return "max_active_per_tenant"
        case "batch":
            return "batching"
        case "interference" if knobs.long_prefill_token_threshold:
            return "long_prefill_token_threshold"
        case "interference":
            return "max_num_batched_tokens"
        case _:
            return None


class _Measured:
    """What the fold has kept, as arrays; here the percentiles are worked out, without its lock."""

    def __init__(
        self,
        firsts: NDArray[np.float64],
        gaps: NDArray[np.float64],
        others: NDArray[np.float64],
        changes: list[KnobsChanged],
        knobs: Knobs,
        until: float,
        window_s: float,
    ) -> None:
        import numpy as np

        self._spans = {"TTFT": firsts, "ITL": gaps[:, :-1]}
        self._tokens = np.concatenate((others, gaps[:, [0, -1]]))
        self._changes = changes
        self._knobs = knobs
        self._until = until
        self._window_s = window_s

    def breakdown(self, metric: Literal["TTFT", "ITL"]) -> Breakdown | None:
        rows = between(self._spans[metric], self._until - self._window_s, self._until)
        p95 = _p95(rows)
        if p95 is None:
            return None
        parts = _parts(rows, p95)
        # the model's own work binds no knob, and cannot be the reason to turn one
        ruled = [(ruling_knob(part.cause, self._knobs), part) for part in parts]
        found = [knob for knob, part in ruled if knob and part.share >= _WORTH_NAMING]
        knob = found[0] if found else None
        return Breakdown(
            metric=metric,
            n=len(rows),
            p95_s=p95,
            parts=parts,
            knob=knob,
            value=self._knobs.as_dict()[knob] if knob else None,
            relieved=knob is not None and self._relieved(knob, rows),
            effect=self._effect(knob) if knob else None,
        )

    def _last_change(self, knob: str) -> KnobsChanged | None:
        return next((c for c in reversed(self._changes) if knob in c.changed), None)

    def _relieved(self, knob: str, rows: NDArray[np.float64]) -> bool:
        """Whether what it rules has become small since its last change, in the same window."""
        change = self._last_change(knob)
        since = rows[:0] if change is None else between(rows, change.t, self._until)
        if not _ENOUGH <= len(since) < len(rows):
            return False
        ruled = [p for p in _parts(since, 1.0) if ruling_knob(p.cause, self._knobs) == knob]
        return sum(part.share for part in ruled) < _WORTH_NAMING

    def _effect(self, knob: str) -> Effect | None:
        change = self._last_change(knob)
        if change is None:
            return None
        sides = ((change.t - self._window_s, change.t), (change.t, self._until))
        if any(len(between(self._spans["TTFT"], *side)) < _ENOUGH for side in sides):
            return None
        ttft, itl = (
            tuple(_p95(between(self._spans[metric], *side)) for side in sides)
            for metric in ("TTFT", "ITL")
        )
        rates = [between(self._tokens, *side) for side in sides]
        spans = [_span(rows, side) for rows, side in zip(rates, sides, strict=True)]
        before, after = change.changed[knob]
        return Effect(
            knob=knob,
            before=before,
            after=after,
            step=change.step,
            ago_s=self._until - change.t,
            ttft_p95=(ttft[0], ttft[1]),
            itl_p95=(itl[0], itl[1]),
            generated_per_s=(
                float(rates[0][:, 1].sum()) / spans[0], float(rates[1][:, 1].sum()) / spans[1]
            ),
        )


def _span(rows: NDArray[np.float64], side: tuple[float, float]) -> float:
    """Seconds to divide by, from the first tokens to the last: what was idle before them or since
    says nothing of a knob."""
    first, last = (float(rows[:, 0].min()), float(rows[:, 0].max())) if len(rows) else side
    return last - first if last - first >= _SPAN_S else max(side[1] - first, 1e-9)


def _p95(rows: NDArray[np.float64]) -> float | None:
    return Summary.of(rows[:, 1]).p95


def _parts(rows: NDArray[np.float64], p95: float) -> tuple[CausePart, ...]:
    import numpy as np

    least = min(int(_TAIL * len(rows)), len(rows) - 1)
    tail = rows[np.argpartition(rows[:, 1], least)[least:]]  # by rank: ties must not widen it
    means = tail[:, 2:].mean(axis=0)
    whole = float(means.sum()) or 1.0
    parts = [
        CausePart(cause, p95 * float(mean) / whole, float(mean) / whole)
        for cause, mean in zip(CAUSES, means, strict=True)
        if mean > 0
    ]
    return tuple(sorted(parts, key=lambda part: -part.seconds))
