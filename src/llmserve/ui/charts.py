"""The charts: one anywidget, one ES module, binary deltas.

`_esm` is a loader of half a kilobyte, because it is saved into every notebook that stores widget
state. The module itself (plotly.js included, 1.2 MB) is sent when a page asks for it.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from typing import Any

import anywidget
import traitlets

from llmserve.clock import Clock
from llmserve.knobs import KnobBoard
from llmserve.ui.codec import Frame, encode
from llmserve.ui.controls import Controls, pin_comm
from llmserve.ui.explained import Explained
from llmserve.ui.link import Link
from llmserve.ui.panels import COLUMNS, WINDOW_S
from llmserve.ui.recorder import Recorder
from llmserve.ui.series import CAPACITY
from llmserve.ui.tape import KINDS, STEPS, UPDATE_BYTES, Cursor

log = logging.getLogger(__name__)

PERIOD_S = 0.2


def static(name: str) -> bytes:
    """A file that the package build makes from widgets/; RuntimeError with the cure without it."""
    path = resources.files("llmserve.ui") / "static" / name
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RuntimeError(
            f"the dashboard's browser part, llmserve/ui/static/{name}, has not been built: run "
            "`python widgets/build_hook.py` in the checkout, or `pip install .` again"
        ) from None


class Charts(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget has no stubs here
    """Sends what its pages lack. `push` and the page's messages may come from any threads."""

    _esm = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        recorder: Recorder,
        board: KnobBoard,
        controls: Controls,
        clock: Clock,
        about: Mapping[str, str],
    ) -> None:
        super().__init__(_esm=static("loader.js").decode())
        self._recorder = recorder
        self._board = board
        self._controls = controls
        self._clock = clock
        self._about = about
        self._guard = threading.RLock()
        self._link = Link()
        self._marks_sent = 0
        self._state_sent: dict[str, object] = {}
        self._explained_sent = Explained()
        self._tape_sent: Cursor | None = None
        """None: the page has nothing of the tape, or has lost some."""
        self._tape_seq = 0
        self._pictures: dict[int, tuple[threading.Event, list[bytes]]] = {}
        self._picture_ids = itertools.count(1)
        self._ended = ""
        pin_comm(self)
        self.on_msg(self._heard)

    def push(self) -> None:
        """Send the page what it lacks, if a page listens."""
        with self._guard:
            due = self._link.due(self._recorder.oldest, self._clock.now())
            if due != "nothing":
                self._send_rows(whole=due == "snapshot")
                self._send_why()
                self._send_tape()

    def end(self, why: str) -> None:
        """Say for good that no more rows will come; a page that reloads is told so too."""
        with self._guard:
            self._ended = why
        self.push()

    def picture(self, timeout_s: float) -> bytes | None:
        """A PNG as a page draws it; None where no page answers in time."""
        with self._guard:
            if not self._link.listening(self._clock.now()):
                return None
            number = next(self._picture_ids)
            arrived, parts = self._pictures[number] = (threading.Event(), [])
        self.send({"kind": "picture", "id": number})
        arrived.wait(timeout_s)
        with self._guard:
            del self._pictures[number]
        return parts[0] if parts else None

    def _heard(self, _: object, content: dict[str, Any], buffers: list[memoryview]) -> None:
        now = self._clock.now()
        match content.get("kind"):
            case "module":
                self.send({"kind": "module"}, buffers=[static("dashboard.js")])
            case "hello":
                with self._guard:
                    self._link.hello(now)
                    self._tape_sent, self._explained_sent = None, Explained()
                    self.push()
            case "tape":
                with self._guard:
                    self._tape_sent = None
            case "ack":
                with self._guard:
                    self._link.acknowledged(int(content["seq"]), now)
            case "bye":
                with self._guard:
                    self._link.bye()
            case "picture":
                with self._guard:
                    waiting = self._pictures.get(int(content["id"]))
                if waiting and buffers:
                    waiting[1].append(bytes(buffers[0]))
                    waiting[0].set()
            case kind:
                log.warning("the dashboard's page sent an unknown message: %r", kind)

    def _send_rows(self, whole: bool) -> None:
        position, times, values = self._recorder.rows(0 if whole else self._link.position)
        content = self._news(whole)
        if whole:
            content |= self._constants()
        elif not len(times) and not content:
            return
        seq = self._link.sent(position)
        content |= {"kind": "snapshot" if whole else "delta", "seq": seq}
        self.send(content, buffers=[encode(Frame(seq, times, values))])

    def _send_why(self) -> None:
        explained = self._recorder.explained()
        if explained != self._explained_sent:
            self._explained_sent = explained
            self.send(explained.as_json())

    def _send_tape(self) -> None:
        """The tape apart from the charts, numbered on its own: a page that misses some asks."""
        whole = self._tape_sent is None
        cursor = self._tape_sent or Cursor()
        news = self._recorder.tape.news(cursor, limit=None if whole else UPDATE_BYTES)
        self._tape_sent = news.cursor
        if news.empty and not whole:
            return
        self._tape_seq += 1
        content = {
            "kind": "tape", "seq": self._tape_seq, "whole": whole, "first": news.first_step,
            "rows": news.rows,
        }  # fmt: skip
        if whole:
            content |= {"kinds": KINDS, "capacity": STEPS}
        self.send(content, buffers=[news.steps, news.segments])

    def _news(self, whole: bool) -> dict[str, object]:
        """What changed besides the rows; all there is for a snapshot."""
        revision, marks = self._recorder.marks(0 if whole else self._marks_sent)
        self._marks_sent = revision
        knobs = self._board.current.as_dict()
        state: dict[str, object] = {
            "knobs": knobs,
            "panels": self._recorder.panels(),
            "status": self._ended or self._controls.status,
            "empty": not self._recorder.requests_seen,
            "ended": bool(self._ended),
        }
        again = {"knobs"} if self._controls.take_changed() else set()
        news = {
            name: value
            for name, value in state.items()
            if whole or name in again or value != self._state_sent.get(name)
        }
        self._state_sent = state
        if "knobs" in news:
            self._controls.told(knobs)
        if "panels" in news:
            news["panels"] = [asdict(panel) for panel in self._recorder.panels()]
        if marks:
            news["marks"] = [mark.as_json(self._recorder.t0) for mark in marks]
        return news

    def _constants(self) -> dict[str, object]:
        return {
            "columns": COLUMNS,
            "capacity": CAPACITY,
            "period_s": PERIOD_S,
            "window_s": WINDOW_S,
            "controls": self._controls.places(),
            "about": self._about,
        }
