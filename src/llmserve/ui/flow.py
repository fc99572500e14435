"""Who waits by tenant and class, who is refused and why, what meets the SLO, what a step saves.

A fold over the events that the standing figures do not keep apart. The first few tenants and
classes seen have a column of their own; what comes later has none, and is in the total.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Final, get_args

from llmserve.events import (
    Dispatched,
    Event,
    Finished,
    FirstToken,
    Rejection,
    RejectReason,
    StepRecorded,
    Submitted,
)

SLOTS: Final = 4
REASONS: Final[tuple[RejectReason, ...]] = get_args(RejectReason)
_KEPT = 20_000


class Flow:
    """Attach to an EventBus; `figures` from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[str, int]] = {}  # request to tenant and class
        self._born: dict[str, float] = {}
        self._ttft: dict[str, float] = {}
        self._ended: deque[tuple[float, float]] = deque(maxlen=_KEPT)  # end, TTFT; by stop, length
        self._refused: deque[tuple[float, str]] = deque(maxlen=_KEPT)
        self._steps: deque[tuple[float, int, int, int, int]] = deque(maxlen=_KEPT)
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
                self._steps.append(
                    (event.t, cached, record.prefill_tokens, drafts, record.accepted_tokens)
                )
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
            ended = [ttft for t, ttft in self._ended if t > after]
            refused = Counter(reason for t, reason in self._refused if t > after)
            steps = [step for step in self._steps if step[0] > after]
            tenants = Counter(tenant for tenant, _ in self._waiting.values())
            classes = Counter(level for _, level in self._waiting.values())
            figures = {f"waiting_t{i}": float(tenants[t]) for i, t in enumerate(self.tenants)}
            figures |= {f"waiting_c{i}": float(classes[c]) for i, c in enumerate(self.classes)}
        figures |= {f"refused_{reason}": refused[reason] / window_s for reason in REASONS}
        figures["finished"] = len(ended) / window_s
        figures["goodput"] = sum(ttft <= slo_s for ttft in ended) / window_s
        cached, computed = sum(s[1] for s in steps), sum(s[2] for s in steps)
        if cached + computed:
            figures["prefix_hits"] = 100 * cached / (cached + computed)
        if drafts := sum(s[3] for s in steps):
            figures["accepted"] = 100 * sum(s[4] for s in steps) / drafts
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
            self._refused.append((event.t, event.reason))
            self.reasons.add(event.reason)
        elif ttft is not None and event.reason in ("stop", "length"):
            self._ended.append((event.t, ttft))
