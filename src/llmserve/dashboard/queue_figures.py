"""Requests waiting by tenant and class, refusals by reason, SLO attainment, tokens a step saves.

A fold over the events that the standing figures do not keep apart. The first few tenants and
classes seen have a column of their own; what comes later has none, and is in the total.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from typing import Final, get_args

from llmserve.core.events import (
    Dispatched,
    Event,
    Finished,
    FirstToken,
    Rejection,
    RejectReason,
    StepRecorded,
    Submitted,
)
from llmserve.observe.window import Samples

SLOTS: Final = 4
REASONS: Final[tuple[RejectReason, ...]] = get_args(RejectReason)
_KEPT = 20_480


class QueueFigures:
    """Attach to an EventBus; `figures` from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[str, int]] = {}  # request to tenant and class
        self._born: dict[str, float] = {}
        self._ttft: dict[str, float] = {}
        self._ended = Samples(2, _KEPT)  # t, TTFT; of those that ended by stop or length
        self._refused = Samples(2, _KEPT)  # t, place of the reason in REASONS
        self._steps = Samples(5, _KEPT)  # t, cached, prefilled, drafted, accepted
        self.tenants: list[str] = []
        self.classes: list[int] = []
        self.reasons: set[str] = set()
        """By which something was refused at all."""
        self.speculates = False

    def __call__(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, StepRecorded):
                record = event.record
                cached, drafts = record.cached_tokens, record.draft_tokens
                self.speculates = self.speculates or drafts > 0
                accepted = record.accepted_tokens
                self._steps.append(event.t, cached, record.prefill_tokens, drafts, accepted)
            elif isinstance(event, Submitted):
                self._submit(event)
            elif isinstance(event, Dispatched):
                self._waiting.pop(event.request_id, None)
            elif isinstance(event, FirstToken):
                if (born := self._born.get(event.request_id)) is not None:
                    self._ttft[event.request_id] = event.t - born
            elif isinstance(event, Finished | Rejection):
                self._end(event)

    def figures(self, now: float, window_s: float, slo_s: float) -> dict[str, float]:
        """By column of `panels.COLUMNS`. Rates are over the window, or the time since its start."""
        after = now - window_s
        with self._lock:
            ended, refused, steps = (
                kept.window(after, math.inf) for kept in (self._ended, self._refused, self._steps)
            )
            tenants = Counter(tenant for tenant, _ in self._waiting.values())
            classes = Counter(level for _, level in self._waiting.values())
            figures = {f"waiting_t{i}": float(tenants[t]) for i, t in enumerate(self.tenants)}
            figures |= {f"waiting_c{i}": float(classes[c]) for i, c in enumerate(self.classes)}
        reasons = Counter(refused[:, 1].tolist())
        for i, reason in enumerate(REASONS):
            figures[f"refused_{reason}"] = reasons[i] / window_s
        figures["finished"] = len(ended) / window_s
        figures["goodput"] = float((ended[:, 1] <= slo_s).sum()) / window_s
        _, cached, computed, drafts, accepted = steps.sum(axis=0).tolist()
        if cached + computed:
            figures["prefix_hits"] = 100 * cached / (cached + computed)
        if drafts:
            figures["accepted"] = 100 * accepted / drafts
        return figures

    def _submit(self, event: Submitted) -> None:
        self._waiting[event.request_id] = (event.tenant, event.priority)
        self._born[event.request_id] = event.t
        if event.tenant not in self.tenants and len(self.tenants) < SLOTS:
            self.tenants.append(event.tenant)
        if event.priority not in self.classes and len(self.classes) < SLOTS:
            self.classes.append(event.priority)

    def _end(self, event: Finished | Rejection) -> None:
        self._waiting.pop(event.request_id, None)
        self._born.pop(event.request_id, None)
        ttft = self._ttft.pop(event.request_id, None)
        if isinstance(event, Rejection):
            self._refused.append(event.t, REASONS.index(event.reason))
            self.reasons.add(event.reason)
        elif ttft is not None and event.reason in ("stop", "length"):
            self._ended.append(event.t, ttft)
