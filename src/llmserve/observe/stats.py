"""LiveStats: the figures of the last seconds, exact over a sliding window.

Times come from the events and from nothing else, so the snapshot of a replayed trace equals the
live one. Memory is bounded: 262,144 token deliveries and 65,536 of everything else (at most
about 14 MB). A window that holds more is cut to the newest, and the snapshot says `capped`.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from typing import assert_never

import msgspec

from llmserve.core.events import (
    CacheLooked,
    DeviceSampled,
    Dispatched,
    Event,
    FairnessSampled,
    Finished,
    FirstToken,
    KnobsChanged,
    KnobsSatisfied,
    Rejection,
    StepRecorded,
    Submitted,
    TokensEmitted,
    WaitReasonChanged,
)
from llmserve.core.quantities import duration
from llmserve.core.types import StepRecord
from llmserve.observe.request_timeline import RequestTimelines
from llmserve.observe.window import Samples, Summary

DELIVERIES = 262_144
SAMPLES = 65_536
_NAN = math.nan


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Figures at time `t`. Latencies, rates and fills cover the window; the rest says so."""

    t: float
    window_s: float
    span_s: float
    """What rates are divided by: the window, or the session's age where that is less."""
    ttft: Summary
    itl: Summary
    """Gaps between a request's deliveries; tokens delivered together make one gap."""
    tpot: Summary
    e2e: Summary
    """TPOT and E2E are of requests that ended by stop or length; others are in `finished`."""
    queue: Summary
    step_time: Summary
    prompt_tokens_per_s: float
    """Counted when the first token comes, cached ones included, as vLLM does."""
    generated_tokens_per_s: float
    finished_per_s: float
    steps_per_s: float
    batch_fill: float | None
    """Tokens computed, as a part of what max_num_batched_tokens allowed; None without a step."""
    seq_fill: float | None
    """Sequences in the steps, as a part of what max_num_seqs allowed."""
    running: int
    waiting: int
    kv_used_tokens: int | None
    kv_capacity_tokens: int | None
    """KV room as the last step left it, 0 used once nothing runs; None before the first step."""
    finished: dict[str, int]
    refused: dict[str, int]
    """By reason, since the session began; so are the totals."""
    prompt_tokens_total: int
    cached_tokens_total: int
    generated_tokens_total: int
    preemptions_total: int
    draft_tokens_total: int
    """Tokens that speculation proposed and steps checked."""
    accepted_tokens_total: int
    """Those of them that stood."""
    steps_total: int
    devices: tuple[DeviceSampled, ...]
    """The last sample of each device."""
    dropped: int
    """Events known to be missing from what was folded; 0 unless a replayed trace had lost some."""
    capped: bool
    """The window had more samples than are kept: figures are of the newest."""

    fairness_gap: float | None = None
    """Largest difference of service between two waiting tenants, in weighted tokens, as last
    seen under fair_share; None where no two waited in the window."""
    fairness_bound: float | None = None
    """What fair_share promises that it never exceeds."""
    cache_hits_total: int = 0
    cache_misses_total: int = 0

    @property
    def acceptance(self) -> float | None:
        """Share of proposed speculative tokens that were accepted, 0 to 1; None without any."""
        return _ratio(self.accepted_tokens_total, self.draft_tokens_total)

    @property
    def kv_use(self) -> float | None:
        """Share of KV memory in use, 0 to 1."""
        if self.kv_used_tokens is None or not self.kv_capacity_tokens:
            return None
        return self.kv_used_tokens / self.kv_capacity_tokens

    def __str__(self) -> str:
        lines = [
            f"{self.running} running, {self.waiting} waiting; "
            f"{self.generated_tokens_per_s:,.0f} generated and "
            f"{self.prompt_tokens_per_s:,.0f} prompt tokens/s over {duration(self.span_s)}"
        ]
        named = {"TTFT": self.ttft, "ITL": self.itl, "E2E": self.e2e, "queue": self.queue}
        for name, s in named.items():
            if s.p50 is not None and s.p95 is not None and s.p99 is not None:
                p50, p95, p99 = map(duration, (s.p50, s.p95, s.p99))
                lines.append(f"{name:<5} p50 {p50}  p95 {p95}  p99 {p99}  n {s.n}")
        return "\n".join(lines)


class LiveStats:
    """Attach to an EventBus; read with `snapshot` from any thread."""

    def __init__(self, window_s: float = 30.0) -> None:
        self.window_s = window_s
        self._lock = threading.Lock()
        self._timelines = RequestTimelines()
        self._began: float | None = None
        self._last = -math.inf
        self._deliveries = Samples(3, DELIVERIES)  # t, tokens, gap
        self._firsts = Samples(3, SAMPLES)  # t, TTFT, prompt tokens
        self._queued = Samples(2, SAMPLES)  # t, queue time
        self._ends = Samples(3, SAMPLES)  # t, E2E, TPOT
        self._steps = Samples(6, SAMPLES)  # t, duration, tokens, their budget, rows, their cap
        self._finished: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._devices: dict[tuple[str, str], DeviceSampled] = {}
        self._record: StepRecord | None = None
        self._fairness: FairnessSampled | None = None
        self._cache = [0, 0]  # misses, hits
        self._prompt_tokens = self._cached_tokens = self._tokens = 0
        self._preemptions = self._step_count = self._dropped = 0
        self._drafted = self._accepted = 0

    def __call__(self, event: Event) -> None:
        """Fold one event. The frequent ones come first: the match is tried in this order."""
        with self._lock:
            if event.t > self._last:
                self._last = event.t
                if self._began is None:
                    self._began = event.t
            match event:
                case TokensEmitted():
                    t, append = event.t, self._deliveries.append
                    for n, gap in self._timelines.emit(event):
                        self._tokens += n
                        append(t, n, _NAN if gap is None else gap)
                case StepRecorded():
                    self._fold_step(event.t, event.record)
                case Submitted():
                    self._timelines.submit(event)
                case Dispatched():
                    if (timeline := self._timelines.dispatch(event)) is not None:
                        self._queued.append(event.t, event.t - timeline.submitted)
                case FirstToken():
                    self._fold_first(event)
                case Finished():
                    self._fold_end(event)
                case Rejection():
                    self._timelines.end(event.request_id)
                    self._refused[event.reason] += 1
                case DeviceSampled():
                    self._devices[event.kind, event.name] = event
                case FairnessSampled():
                    self._fairness = event
                case CacheLooked():
                    self._cache[event.hit] += 1
                case WaitReasonChanged() | KnobsChanged() | KnobsSatisfied():
                    pass
                case _:
                    assert_never(event)

    @property
    def began(self) -> float | None:
        """Time of the first event; None before it."""
        return self._began

    def note_dropped(self, n: int) -> None:
        """`n` events did not reach this fold: the snapshot will say so."""
        with self._lock:
            self._dropped += n

    def _fold_step(self, t: float, record: StepRecord) -> None:
        self._record = record
        self._step_count += 1
        self._preemptions += len(record.preempted)
        self._drafted += record.draft_tokens
        self._accepted += record.accepted_tokens
        tokens = record.computed_tokens
        budget, cap = record.max_num_batched_tokens, record.max_num_seqs
        self._steps.append(t, record.duration_s, tokens, budget, len(record.rows), cap)

    def _fold_first(self, event: FirstToken) -> None:
        if (timeline := self._timelines.first_token(event)) is not None:
            self._firsts.append(event.t, event.t - timeline.submitted, timeline.prompt_tokens)
            self._prompt_tokens += timeline.prompt_tokens
            self._cached_tokens += event.cached_tokens

    def _fold_end(self, event: Finished) -> None:
        timeline = self._timelines.end(event.request_id)
        self._finished[event.reason] += 1
        e2e = tpot = None
        if timeline is not None and event.reason in ("stop", "length"):
            e2e = event.t - timeline.submitted
            tpot = timeline.tpot_s(event.t, event.completion_tokens)
        self._ends.append(event.t, _NAN if e2e is None else e2e, _NAN if tpot is None else tpot)

    def snapshot(self, now: float | None = None, window_s: float | None = None) -> Snapshot:
        """Figures over the window that ends `now` (None: at the last event)."""
        window = self.window_s if window_s is None else window_s
        with self._lock:  # copies only: the percentiles are worked out after the lock is let go
            began = 0.0 if self._began is None else self._began
            until = max(self._last, began) if now is None else now
            after = until - window
            kept = (self._deliveries, self._firsts, self._queued, self._ends, self._steps)
            deliveries, firsts, queued, ends, steps = (s.window(after, until) for s in kept)
            cuts = [s.oldest() for s in kept]
            span = 0.0 if self._began is None else min(window, until - began)
            record = self._record
            kv_used = None if record is None else self._timelines.kv_in_use(record)
            totals = {
                "running": self._timelines.running,
                "waiting": self._timelines.waiting,
                "prompt_tokens_total": self._prompt_tokens,
                "cached_tokens_total": self._cached_tokens,
                "generated_tokens_total": self._tokens,
                "preemptions_total": self._preemptions,
                "draft_tokens_total": self._drafted,
                "accepted_tokens_total": self._accepted,
                "steps_total": self._step_count,
                "dropped": self._dropped,
                "cache_hits_total": self._cache[True],
                "cache_misses_total": self._cache[False],
            }
            fairness = self._fairness
            finished, refused = dict(self._finished), dict(self._refused)
            devices = tuple(self._devices.values())
        spans = [span if cut is None else min(span, until - cut) for cut in cuts]
        return Snapshot(
            t=until,
            window_s=window,
            span_s=span,
            ttft=Summary.of(firsts[:, 1]),
            itl=Summary.of(deliveries[:, 2]),
            tpot=Summary.of(ends[:, 2]),
            e2e=Summary.of(ends[:, 1]),
            queue=Summary.of(queued[:, 1]),
            step_time=Summary.of(steps[:, 1]),
            generated_tokens_per_s=_ratio(deliveries[:, 1].sum(), spans[0]) or 0.0,
            prompt_tokens_per_s=_ratio(firsts[:, 2].sum(), spans[1]) or 0.0,
            finished_per_s=_ratio(len(ends), spans[3]) or 0.0,
            steps_per_s=_ratio(len(steps), spans[4]) or 0.0,
            batch_fill=_ratio(steps[:, 2].sum(), steps[:, 3].sum()),
            seq_fill=_ratio(steps[:, 4].sum(), steps[:, 5].sum()),
            kv_used_tokens=kv_used,
            kv_capacity_tokens=None if record is None else record.kv_capacity_tokens,
            finished=finished,
            refused=refused,
            devices=devices,
            fairness_gap=None if fairness is None or fairness.t <= after else fairness.gap,
            fairness_bound=None if fairness is None or fairness.t <= after else fairness.bound,
            capped=any(cut is not None and cut > after for cut in cuts),
            **totals,
        )


def _ratio(part: float, whole: float) -> float | None:
    return float(part) / float(whole) if whole > 0 else None
