"""Samples one session's figures for all of its dashboards, after those of the time before them.

It holds the parts it reads and never the session itself: a session that nobody holds any more
closes itself, and a dashboard must not keep it from that.
"""

from __future__ import annotations

import math
import threading
from collections import deque

import numpy as np
from numpy.typing import NDArray

from llmserve.core.clock import Clock
from llmserve.core.events import DeviceSampled, Event, EventBus, KnobsChanged, KnobsSatisfied
from llmserve.core.knobs import KnobBoard
from llmserve.dashboard.backfill import Backfill, EventBuffer, TelemetryLike
from llmserve.dashboard.batch_tape import TapeLog
from llmserve.dashboard.latency_panel import EXPLAIN_S, LatencyPanel
from llmserve.dashboard.panels import COLUMNS, WINDOW_S, Panel, panels, row
from llmserve.dashboard.queue_figures import QueueFigures
from llmserve.dashboard.series import Mark, Marks, Series
from llmserve.observe.stats import Snapshot


class SeriesRecorder:
    """`sample` adds a row; any thread may read."""

    def __init__(
        self, telemetry: TelemetryLike, board: KnobBoard, bus: EventBus, clock: Clock
    ) -> None:
        self._stats = telemetry.stats
        self._why = telemetry.why
        self._board = board
        self._bus = bus
        self._clock = clock
        self._lock = threading.Lock()
        self._series = Series(len(COLUMNS))
        self._marks = Marks()
        self._events: deque[Event] = deque(maxlen=1000)  # knob changes only, so it never fills
        self._devices: tuple[DeviceSampled, ...] = ()
        self._panels: tuple[object, tuple[Panel, ...]] = (None, ())
        self._explained = (-math.inf, LatencyPanel())
        self.requests_seen = 0
        self._flow = QueueFigures()
        self.tape = TapeLog()
        self._folds = (self._hear, self.tape, self._flow)
        buffer = EventBuffer(bus, self._folds)
        past = Backfill(telemetry, clock.now())
        self.t0 = self.tape.t0 = past.began
        """When the session began: times on the page count from it."""
        for snapshot in past.replay(self._folds, self.tape.lose):
            self._add(snapshot)
        buffer.open(past.known)

    def close(self) -> None:
        for fold in self._folds:
            self._bus.detach(fold)

    def _hear(self, event: Event) -> None:
        if isinstance(event, KnobsChanged | KnobsSatisfied):
            self._events.append(event)

    def sample(self) -> None:
        self._add(self._stats.snapshot(self._clock.now(), WINDOW_S))

    def _add(self, snapshot: Snapshot) -> None:
        slo_s = self._board.current.ttft_slo_ms / 1e3
        flow = self._flow.figures(snapshot.t, WINDOW_S, slo_s)
        with self._lock:
            while self._events:
                self._marks.fold(self._events.popleft())
            self._series.append(snapshot.t - self.t0, row(snapshot, flow))
            self._devices = snapshot.devices
            self.requests_seen = snapshot.running + snapshot.waiting + sum(
                (*snapshot.finished.values(), *snapshot.refused.values())
            )

    @property
    def oldest(self) -> int:
        return self._series.oldest

    def rows(self, position: int) -> tuple[int, NDArray[np.float64], NDArray[np.float32]]:
        """The position after the newest row, and the rows from `position` on."""
        with self._lock:
            return (self._series.total, *self._series.since(position))

    def marks(self, revision: int) -> tuple[int, list[Mark]]:
        """The newest revision, and the marks later than `revision`."""
        with self._lock:
            return self._marks.revision, self._marks.since(revision)

    def explained(self) -> LatencyPanel:
        """Why it is slow, worked out now and then, however many dashboards ask."""
        now = self._clock.now()
        with self._lock:
            made, explained = self._explained
            if now - made >= EXPLAIN_S:
                explained = LatencyPanel.of(self._why.explain(self._board.current, now))
                self._explained = (now, explained)
        return explained

    def panels(self) -> tuple[Panel, ...]:
        """The very same tuple for as long as nothing about them changes."""
        flow, slo_ms = self._flow, self._board.current.ttft_slo_ms
        kinds = tuple(
            (d.kind, d.total_bytes, d.power_w is None, d.temperature_c is None)
            for d in self._devices
        )
        seen = (len(flow.tenants), len(flow.classes), len(flow.reasons), flow.speculates)
        key = (kinds, seen, slo_ms)
        if self._panels[0] != key:
            self._panels = (key, panels(self._devices, flow, slo_ms))
        return self._panels[1]
