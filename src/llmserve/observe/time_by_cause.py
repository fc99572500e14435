"""Where each request's time goes: every second from its arrival is put under one cause.

Invariant: the parts of a finished span (arrival to first token; one delivery to the next) add up
to its length exactly. What no step and no published reason explains is "other": waiting for the
step under way to end, delivery, and whatever kept the kernel from hearing.

A step is divided by what it computed. Its prefill part is what it took beyond a step of decodes
alone (the median of the latest such steps; by tokens where there was none yet). Of that part a
prompt's own tokens are its prefill, and the rest is interference.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final, Literal, get_args

import msgspec

from llmserve.core.types import RowKind, StepRecord, WaitReason

Cause = Literal[
    "cap", "policy", "in_flight", "token_budget", "kv", "tenant_limit", "batch", "prefix",
    "prefill", "interference", "preemption", "decode", "other",
]
CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)
_AT: Final = {cause: i for i, cause in enumerate(CAUSES)}
_OTHER, _BUDGET, _PREEMPTION = _AT["other"], _AT["token_budget"], _AT["preemption"]
_PREFILL, _INTERFERENCE, _DECODE = _AT["prefill"], _AT["interference"], _AT["decode"]
_NOTHING = [0.0] * len(CAUSES)
_BASELINE_STEPS = 63


class TimeByCause(msgspec.Struct, gc=False):
    """One request's time since its arrival or last delivery, up to `since`."""

    began: float
    since: float
    parts: list[float]
    cause: int = _OTHER
    """What time is put under while no step has a row of this request."""
    has_token: bool = False
    """Has its first token."""
    step: int | None = None
    """The last engine step that had a row of it."""
    computed: int = 0
    lost: int = 0
    """Tokens to compute again after a preemption."""

    def until(self, t: float, cause: int | None = None) -> None:
        if t > self.since:
            self.parts[self.cause if cause is None else cause] += t - self.since
            self.since = t


class CauseClock:
    """The unfinished requests. Fold steps in order; a request unknown to it is passed over."""

    def __init__(self) -> None:
        self.live: dict[str, TimeByCause] = {}
        self._decode_steps: deque[float] = deque(maxlen=_BASELINE_STEPS)

    def submit(self, request_id: str, t: float) -> None:
        self.live[request_id] = TimeByCause(t, t, _NOTHING.copy())

    def wait(self, request_id: str, reason: WaitReason, t: float) -> None:
        """The front scheduler's word. Its token budget is of requests in flight, not of a step."""
        if (spent := self.live.get(request_id)) is not None:
            spent.until(t)
            spent.cause = _AT["in_flight" if reason == "token_budget" else reason]

    def dispatch(self, request_id: str, t: float) -> None:
        if (spent := self.live.get(request_id)) is not None:
            spent.until(t)
            spent.cause = _OTHER

    def deliver(self, request_id: str, t: float) -> tuple[bool, float, list[float]] | None:
        """Whether it was the first token, the span that ended and its parts; None for tokens
        that came together with those before."""
        spent = self.live.get(request_id)
        if spent is None or (spent.has_token and t <= spent.began):
            return None
        first, spent.has_token = not spent.has_token, True
        parts, since = spent.parts, spent.since  # written out here, once for each token
        if t > since:
            parts[spent.cause] += t - since
            spent.since = since = t
        length = since - spent.began
        spent.began, spent.parts = since, _NOTHING.copy()  # the next span begins there
        return first, length, parts

    def end(self, request_id: str) -> None:
        self.live.pop(request_id, None)

    def step(self, record: StepRecord) -> None:
        start = record.start_s
        for request_id, reason in record.wait_reasons:
            spent = self.live.get(request_id)
            if spent is not None and spent.cause != _PREEMPTION:
                spent.until(start)
                spent.cause = _AT[reason]
        for request_id in record.preempted:
            if (spent := self.live.get(request_id)) is not None:
                spent.until(start)
                spent.cause, spent.lost, spent.computed = _PREEMPTION, spent.computed, 0
        self._rows(record)

    def _rows(self, record: StepRecord) -> None:
        """Once for each token that is decoded: the common row is put under its cause right here."""
        start, index, live = record.start_s, record.index, self.live
        end = start + record.duration_s
        prefill = record.prefill_tokens
        extra = self._prefill_part(record, prefill)
        for row in record.rows:
            spent = live.get(row.request_id)
            if spent is None:
                continue
            since = spent.since
            if start > since:
                cause = spent.cause
                if cause == _OTHER and spent.step is not None and index > spent.step + 1:
                    cause = _BUDGET
                spent.parts[cause] += start - since
                spent.since = since = start
            if prefill or spent.lost:
                own = row.tokens if row.kind == "prefill" else 0
                others = extra * (prefill - own) / prefill if prefill else 0.0
                _compute(spent, row.kind, row.tokens, start, end, others)
            else:
                spent.computed += row.tokens
                if end > since:
                    spent.parts[_DECODE] += end - since
                    spent.since = end
            spent.step, spent.cause = index, _OTHER

    def _prefill_part(self, record: StepRecord, prefill: int) -> float:
        """Seconds of the step that its prefills added to its decodes."""
        if not prefill:
            self._decode_steps.append(record.duration_s)
            return 0.0
        decode = record.computed_tokens - prefill
        if not decode:
            return record.duration_s
        if not self._decode_steps:
            return record.duration_s * prefill / (prefill + decode)
        return max(0.0, record.duration_s - median(self._decode_steps))


def _compute(
    spent: TimeByCause, kind: RowKind, tokens: int, start: float, end: float, others: float
) -> None:
    """Put a step with a row of this request under its causes; the part before `since` is past."""
    again = kind == "prefill" and (spent.lost > 0 or spent.has_token)
    spent.computed += tokens
    spent.lost = max(0, spent.lost - tokens)
    if again:
        spent.until(end, _PREEMPTION)
        return
    own = _PREFILL if kind == "prefill" else _DECODE
    left = max(0.0, end - max(spent.since, start))
    share = min(1.0, others / (end - start)) if end > start else 0.0
    spent.parts[_INTERFERENCE] += left * share
    spent.parts[own] += left * (1.0 - share)
    spent.since = max(spent.since, end)
