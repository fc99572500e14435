"""Folds over the event stream: all that is shown of a session, live or replayed, comes from here.

A fold is called on the loop's thread for every event: it is quick, bounded in memory, and may be
read from any thread.
"""

from __future__ import annotations

from llmserve.core.clock import Clock
from llmserve.core.events import EventBus
from llmserve.observe.attribution import WhyFold
from llmserve.observe.attribution_report import Why
from llmserve.observe.prometheus import PrometheusExporter
from llmserve.observe.requests import RequestLog, RequestRow
from llmserve.observe.stats import LiveStats, Snapshot
from llmserve.observe.steps import StepLog
from llmserve.observe.window import Summary

__all__ = [
    "LiveStats", "PrometheusExporter", "RequestLog", "RequestRow", "Snapshot", "StepLog",
    "Summary", "Telemetry", "Why", "WhyFold",
]


class Telemetry:
    """The standing folds of one session, attached to its bus until `close`."""

    def __init__(
        self, bus: EventBus, clock: Clock, window_s: float = 30.0, *, model_name: str = ""
    ) -> None:
        self.bus = bus
        self.clock = clock
        self.stats = LiveStats(window_s)
        self.requests = RequestLog()
        self.steps = StepLog()
        self.prometheus = PrometheusExporter(model_name)
        self.why = WhyFold()
        self._folds = (self.stats, self.requests, self.steps, self.prometheus, self.why)
        for fold in self._folds:
            bus.attach(fold)

    def snapshot(self) -> Snapshot:
        """Figures of the window that ends now."""
        return self.stats.snapshot(self.clock.now())

    def close(self) -> None:
        for fold in self._folds:
            self.bus.detach(fold)
