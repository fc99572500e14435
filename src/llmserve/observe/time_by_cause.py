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
        """Note the front scheduler's reason; its token budget is of requests, not of a step."""
        if (request := self.live.get(request_id)) is not None:
            request.until(t)
            request.cause = _AT["in_flight" if reason == "token_budget" else reason]

    def dispatch(self, request_id: str, t: float) -> None:
        if (request := self.live.get(request_id)) is not None:
            request.until(t)
            request.cause = _OTHER

    def deliver(self, request_id: str, t: float) -> tuple[bool, float, list[float]] | None:
        """Whether it was the first token, the span that ended and its parts; None for tokens
        that came together with those before."""
        request = self.live.get(request_id)
        if request is None or (request.has_token and t <= request.began):
            return None
        first, request.has_token = not request.has_token, True
        parts, since = request.parts, request.since  # written out here, once for each token
        if t > since:
            parts[request.cause] += t - since
            request.since = since = t
        length = since - request.began
        request.began, request.parts = since, _NOTHING.copy()  # the next span begins there
        return first, length, parts

    def end(self, request_id: str) -> None:
        self.live.pop(request_id, None)

    def step(self, record: StepRecord) -> None:
        start = record.start_s
        for request_id, reason in record.wait_reasons:
            request = self.live.get(request_id)
            if request is not None and request.cause != _PREEMPTION:
                request.until(start)
                request.cause = _AT[reason]
        for request_id in record.preempted:
            if (request := self.live.get(request_id)) is not None:
                request.until(start)
                request.cause, request.lost, request.computed = _PREEMPTION, request.computed, 0
        self._rows(record)

    def _rows(self, record: StepRecord) -> None:
        """Once for each token that is decoded: the common row is put under its cause right here."""
        start, index, live = record.start_s, record.index, self.live
        end = start + record.duration_s
        prefill = record.prefill_tokens
        extra = self._prefill_part(record, prefill)
        for row in record.rows:
            request = live.get(row.request_id)
            if request is None:
                continue
            since = request.since
            if start > since:
                cause = request.cause
                if cause == _OTHER and request.step is not None and index > request.step + 1:
                    cause = _BUDGET
                request.parts[cause] += start - since
                request.since = since = start
            if prefill or request.lost:
                own = row.tokens if row.kind == "prefill" else 0
                others = extra * (prefill - own) / prefill if prefill else 0.0
                _compute(request, row.kind, row.tokens, start, end, others)
            else:
                request.computed += row.tokens
                if end > since:
                    request.parts[_DECODE] += end - since
                    request.since = end
            request.step, request.cause = index, _OTHER

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
    request: TimeByCause, kind: RowKind, tokens: int, start: float, end: float, others: float
) -> None:
    """Put a step with a row of this request under its causes; the part before `since` is past."""
    again = kind == "prefill" and (request.lost > 0 or request.has_token)
    request.computed += tokens
    request.lost = max(0, request.lost - tokens)
    if again:
        request.until(end, _PREEMPTION)
        return
    own = _PREFILL if kind == "prefill" else _DECODE
    left = max(0.0, end - max(request.since, start))
    share = min(1.0, others / (end - start)) if end > start else 0.0
    request.parts[_INTERFERENCE] += left * share
    request.parts[own] += left * (1.0 - share)
    request.since = max(request.since, end)
