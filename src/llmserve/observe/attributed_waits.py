"""The waits that a window holds, divided by cause and by the knobs in force while they lasted.

A wait counts under the value that a knob had in the middle of it: what began under another value,
and ended just after the change, says nothing of the new one.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

from llmserve.core.events import KnobsChanged
from llmserve.core.knobs import Knobs, KnobValue
from llmserve.observe.attribution_report import Breakdown, CausePart, Effect, UnderValue
from llmserve.observe.time_by_cause import CAUSES, Cause
from llmserve.observe.window import Summary, between

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rows = NDArray[np.float64]

ENOUGH = 5
"""Samples under a value before anything is said of it."""
_TAIL = 0.90
_SPAN_S = 1.0
"""Tokens are counted per second over so much at least."""
_WORTH_NAMING = 0.25
"""A knob binds where the part that it rules is so much of the p95."""


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


class AttributedWaits:
    """What a `WhyFold` has kept, as arrays; percentiles are worked out here, without its lock."""

    def __init__(
        self,
        firsts: Rows,
        gaps: Rows,
        others: Rows,
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
        knob = self._binding(rows, parts)
        under = () if knob is None else self._under(knob, rows)
        return Breakdown(
            metric=metric,
            n=len(rows),
            p95_s=p95,
            parts=parts,
            knob=knob,
            value=None if knob is None else self._value_of_most(knob, rows),
            now=None if knob is None else self._knobs.as_dict()[knob],
            under=under,
            effect=self._effect(knob) if knob else None,
        )

    def _binding(self, rows: Rows, parts: tuple[CausePart, ...]) -> str | None:
        """The knob that rules a large part, by the knobs in force while most of it was waited. The
        model's own work binds no knob, and cannot be the reason to turn one."""
        for part in parts:
            if part.share >= _WORTH_NAMING:
                knobs = self._knobs_at(self._when_mostly(rows, part.cause))
                if (knob := ruling_knob(part.cause, knobs)) is not None:
                    return knob
        return None

    def _when_mostly(self, rows: Rows, cause: Cause) -> float:
        """A time between the two changes of knobs between which most of it was waited."""
        import numpy as np

        tail = _tail(rows)
        times = [change.t for change in self._changes]
        middles = _middles(tail)
        eras = np.searchsorted(times, middles, side="right")
        seconds = np.bincount(eras, weights=tail[:, 2 + CAUSES.index(cause)])
        return float(middles[eras == int(seconds.argmax())].max())

    def _value_of_most(self, knob: str, rows: Rows) -> KnobValue:
        """The value in force during most of the waits that the p95 is made of."""
        tail = _tail(rows)
        found: dict[KnobValue, float] = {}
        for t, length in zip(_middles(tail), tail[:, 1], strict=True):
            value = self._value_at(knob, float(t))
            found[value] = found.get(value, 0.0) + float(length)
        return max(found, key=lambda value: found[value])

    def _under(self, knob: str, rows: Rows) -> tuple[UnderValue, ...]:
        """The same rows by the knob's value, that which was in force last at the end."""
        import numpy as np

        middles = _middles(rows)
        changes = [change for change in self._changes if knob in change.changed]
        eras = np.searchsorted([change.t for change in changes], middles, side="right")
        by_value: dict[KnobValue, list[int]] = {}
        for era in sorted({int(each) for each in eras}):
            after = self._value_at(knob, changes[era - 1].t if era else -math.inf)
            by_value[after] = [*by_value.pop(after, []), era]
        return tuple(
            self._measured(knob, value, rows[np.isin(eras, found)], changes, found[-1])
            for value, found in by_value.items()
        )

    def _measured(
        self, knob: str, value: KnobValue, rows: Rows, changes: list[KnobsChanged], era: int
    ) -> UnderValue:
        p95 = Summary.of(rows[:, 1]).p95 or 0.0
        parts = _parts(rows, p95)
        knobs = self._knobs_at(float(_middles(rows).max()))
        ruled = [part.share for part in parts if ruling_knob(part.cause, knobs) == knob]
        return UnderValue(
            value=value,
            source=changes[era - 1].source if era else None,
            n=len(rows),
            p95_s=p95,
            parts=parts,
            binds=None if len(rows) < ENOUGH else sum(ruled) >= _WORTH_NAMING,
        )

    def _value_at(self, knob: str, t: float) -> KnobValue:
        """By the changes that were published: one that has not been yet was not in force."""
        own = [change for change in self._changes if knob in change.changed]
        first = next((change for change in own if change.t > t), None)
        if first is not None:
            return first.changed[knob][0]
        return own[-1].changed[knob][1] if own else self._knobs.as_dict()[knob]

    def _knobs_at(self, t: float) -> Knobs:
        names = {name for change in self._changes for name in change.changed}
        values: dict[str, Any] = {name: self._value_at(name, t) for name in names}
        return dataclasses.replace(self._knobs, **values)

    def _effect(self, knob: str) -> Effect | None:
        change = next((c for c in reversed(self._changes) if knob in c.changed), None)
        if change is None:
            return None
        sides = ((change.t - self._window_s, change.t), (change.t, self._until))
        waits = {name: _at_middles(rows) for name, rows in self._spans.items()}
        if any(len(between(waits["TTFT"], *side)) < ENOUGH for side in sides):
            return None
        ttft, itl = (
            tuple(_p95(between(waits[metric], *side)) for side in sides)
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


def _middles(rows: Rows) -> Rows:
    return rows[:, 0] - rows[:, 1] / 2


def _at_middles(rows: Rows) -> Rows:
    moved = rows.copy()
    moved[:, 0] = _middles(rows)
    return moved


def _span(rows: Rows, side: tuple[float, float]) -> float:
    """Seconds to divide by, from the first tokens to the last: what was idle before them or since
    says nothing of a knob."""
    first, last = (float(rows[:, 0].min()), float(rows[:, 0].max())) if len(rows) else side
    return last - first if last - first >= _SPAN_S else max(side[1] - first, 1e-9)


def _p95(rows: Rows) -> float | None:
    return Summary.of(rows[:, 1]).p95


def _tail(rows: Rows) -> Rows:
    import numpy as np

    least = min(int(_TAIL * len(rows)), len(rows) - 1)
    return rows[np.argpartition(rows[:, 1], least)[least:]]  # by rank: ties must not widen it


def _parts(rows: Rows, p95: float) -> tuple[CausePart, ...]:
    means = _tail(rows)[:, 2:].mean(axis=0)
    whole = float(means.sum()) or 1.0
    parts = [
        CausePart(cause, p95 * float(mean) / whole, float(mean) / whole)
        for cause, mean in zip(CAUSES, means, strict=True)
        if mean > 0
    ]
    return tuple(sorted(parts, key=lambda part: -part.seconds))
