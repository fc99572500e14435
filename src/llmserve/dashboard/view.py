"""What `session.dashboard()` returns: charts over controls, and one thread that keeps them fed."""

from __future__ import annotations

import base64
import datetime
import logging
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ipywidgets

from llmserve.core.clock import Clock
from llmserve.core.events import EventBus
from llmserve.core.knobs import Applied, KnobBoard
from llmserve.dashboard.backfill import TelemetryLike
from llmserve.dashboard.charts import PERIOD_S, Charts, static
from llmserve.dashboard.controls import Controls
from llmserve.dashboard.playground import Playground, RuntimeLike
from llmserve.dashboard.png import lighten, to_png
from llmserve.dashboard.recorder import SeriesRecorder
from llmserve.engines.base import EngineInfo
from llmserve.serving.service import Service

if TYPE_CHECKING:
    import plotly.graph_objects as go

log = logging.getLogger(__name__)

ENDED = "This session has ended. The charts show what it did."


def about(info: EngineInfo, url: str) -> dict[str, str | int | None]:
    """What a page's head says of the session."""
    place = "simulated, no model runs" if info.simulated else f"{info.engine} on {info.device}"
    return {"model": info.model_id, "place": place, "url": url, "block_size": info.block_size}


class SessionLike(Protocol):
    """What a dashboard asks of a session."""

    @property
    def clock(self) -> Clock: ...
    @property
    def board(self) -> KnobBoard: ...
    @property
    def bus(self) -> EventBus: ...
    @property
    def telemetry(self) -> TelemetryLike: ...
    @property
    def info(self) -> EngineInfo: ...
    @property
    def service(self) -> Service: ...
    @property
    def runtime(self) -> RuntimeLike: ...
    @property
    def url(self) -> str: ...
    @property
    def closed(self) -> bool: ...
    def set(self, **changes: object) -> Applied: ...
    def on_close(self, callback: Callable[[], None]) -> None: ...


class Dashboards:
    """All dashboards of one session: one recorder and one thread, however often it is shown.

    The reference to the session is weak: a dashboard on the screen must not keep it open.
    """

    def __init__(self, session: SessionLike) -> None:
        self._session = weakref.ref(session)
        self._clock = session.clock
        self._board = session.board
        self._info = session.info
        self._service = session.service
        self._runtime = session.runtime
        self._about = about(session.info, session.url)
        self._recorder = SeriesRecorder(
            session.telemetry, session.board, session.bus, session.clock
        )
        self._views: list[DashboardView] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llmserve-dashboard", daemon=True)
        session.on_close(self.close)
        if session.closed:
            self.close()
        else:
            self._recorder.sample()
            self._thread.start()

    def open(self) -> DashboardView:
        controls = Controls(self._board, self._info, self._clock, self._set)
        playground = Playground(self._service, self._runtime)
        charts = Charts(
            self._recorder, self._board, controls, self._clock, self._about, playground
        )
        view = DashboardView(charts, controls, self._recorder, self._forget)
        with self._lock:
            self._views.append(view)
        if self._stop.is_set():
            view.end()
        return view

    def close(self) -> None:
        """Stop the thread and say on every view that the session has ended. Safe twice."""
        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        self._recorder.close()
        with self._lock:
            views = list(self._views)
        for view in views:
            view.end()

    def _forget(self, view: DashboardView) -> None:
        with self._lock:
            if view in self._views:
                self._views.remove(view)

    def _set(self, **changes: object) -> Applied:
        session = self._session()
        if session is None or session.closed:
            raise RuntimeError("the session has ended")
        return session.set(**changes)

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            try:
                self._recorder.sample()
                with self._lock:
                    views = list(self._views)
                for view in views:
                    view.charts.push()
            except Exception:  # one bad update must not end the charts
                log.exception("a dashboard update failed")


class DashboardView(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no stubs
    """Charts over controls. Show it as a cell's last line, as often as wanted."""

    def __init__(
        self,
        charts: Charts,
        controls: Controls,
        recorder: SeriesRecorder,
        forget: Callable[[DashboardView], None],
    ) -> None:
        super().__init__([charts, controls.box])
        self.charts = charts
        self.controls = controls
        self._recorder = recorder
        self._forget = forget

    @property
    def status(self) -> str:
        """What the last move of a control came to."""
        return self.controls.status

    def snapshot(self, timeout_s: float = 3.0) -> Any:
        """The panels as a PNG picture that stays in the notebook and needs no kernel to show.

        Drawn by a page that shows this dashboard; where none answers in time, drawn here.
        """
        from IPython.display import Image

        drawn = self.charts.picture(timeout_s)
        return Image(data=lighten(drawn) if drawn else self.to_png(), format="png")

    def to_png(self) -> bytes:
        """The panels drawn here, whether or not a page shows them."""
        _, times, values = self._recorder.rows(0)
        _, marks = self._recorder.marks(0)
        return to_png(
            self._recorder.panels(), times, values, [m.t - self._recorder.t0 for m in marks]
        )

    def to_figure(self) -> go.Figure:
        """All panels as a plotly Figure, to go on with."""
        from llmserve.dashboard.plotly_figure import to_figure

        recorder = self._recorder
        _, times, values = recorder.rows(0)
        return to_figure(recorder.panels(), times, values, recorder.marks(0)[1], recorder.t0)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the panels, the tape and the requests as one page that needs no network."""
        from llmserve.dashboard.html_report import to_html

        target = Path(path)
        when = datetime.datetime.now().astimezone().isoformat(" ", "minutes")
        messages = self.charts.report(f"Saved {when}. Nothing more will come.")
        target.write_text(to_html("llmserve report", messages, static("dashboard.js")), "utf-8")
        return target

    def end(self) -> None:
        """Say for good that the session has ended."""
        self.charts.end(ENDED)
        self.controls.end()

    def close(self) -> None:
        """Take this dashboard off the page; the session goes on."""
        self._forget(self)
        self.charts.playground.close()
        self.charts.close()
        self.controls.close()
        super().close()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget, and beside it a picture for readers without a kernel."""
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data is not None:
            data["image/png"] = base64.b64encode(self.to_png()).decode("ascii")
        return bundle
