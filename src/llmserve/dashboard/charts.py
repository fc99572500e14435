"""The charts: one anywidget, one ES module, binary deltas.

`_esm` is a loader of half a kilobyte, because it is saved into every notebook that stores widget
state. The module itself (plotly.js included, 1.2 MB) is sent when a page asks for it.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Mapping
from importlib import resources
from typing import Any

import anywidget
import traitlets

from llmserve.core.clock import Clock
from llmserve.core.knobs import KnobBoard
from llmserve.dashboard.controls import Controls
from llmserve.dashboard.page_link import PageLink
from llmserve.dashboard.page_messages import PERIOD_S, Message, PageMessages
from llmserve.dashboard.playground import Playground
from llmserve.dashboard.recorder import SeriesRecorder
from llmserve.dashboard.styles import pin_comm

log = logging.getLogger(__name__)

__all__ = ["PERIOD_S", "Charts", "static"]


def static(name: str) -> bytes:
    """A file that the package build makes from widgets/; RuntimeError with the cure without it."""
    path = resources.files("llmserve.dashboard") / "static" / name
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RuntimeError(
            f"the dashboard's browser part, llmserve/dashboard/static/{name}, has not been built: "
            "run `python widgets/build_hook.py` in the checkout, or `pip install .` again"
        ) from None


class Charts(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget has no stubs here
    """Sends what its pages lack. `push` and the page's messages may come from any threads."""

    _esm = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        recorder: SeriesRecorder,
        board: KnobBoard,
        controls: Controls,
        clock: Clock,
        about: Mapping[str, str | int | None],
        playground: Playground,
    ) -> None:
        super().__init__(_esm=static("loader.js").decode())
        self._recorder = recorder
        self._clock = clock
        self.playground = playground
        self._guard = threading.RLock()
        self._link = PageLink()
        self._outbox = PageMessages(recorder, board, controls, about, self._link, playground)
        self._pictures: dict[int, tuple[threading.Event, list[bytes]]] = {}
        self._picture_ids = itertools.count(1)
        pin_comm(self)
        self.on_msg(self._heard)

    def push(self) -> None:
        """Send the page what it lacks, if a page listens; else end what it began."""
        with self._guard:
            now = self._clock.now()
            due = self._link.due(self._recorder.oldest, now)
            if due != "nothing":
                for content, buffers in self._outbox.messages(whole=due == "snapshot"):
                    self.send(content, buffers=buffers)
            elif self._link.gone(now):
                self.playground.abandon()

    def end(self, why: str) -> None:
        """Say for good that no more rows will come; a page that reloads shows that too."""
        self.playground.close()
        with self._guard:
            self._outbox.ended = why
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

    def report(self, why: str) -> list[Message]:
        """Return all messages of a finished session, as a page that opens late would get them."""
        outbox = self._outbox.copy()
        outbox.ended = why
        with self._guard:
            return list(outbox.messages(whole=True))

    def _heard(self, _: object, content: dict[str, Any], buffers: list[memoryview]) -> None:
        now = self._clock.now()
        page = str(content.get("page", ""))
        match content.get("kind"):
            case "module":
                self.send({"kind": "module"}, buffers=[static("dashboard.js")])
            case "hello":
                with self._guard:
                    self._link.hello(now, page)
                    self.push()
            case "tape":
                with self._guard:
                    self._outbox.forget_tape()
            case "ack":
                with self._guard:
                    self._link.acknowledged(int(content["seq"]), now, page)
            case "bye":
                with self._guard:
                    self._link.bye(page)
                    if self._link.gone(now):
                        self.playground.abandon()
            case "play":
                with self._guard:
                    if not self._link.listening(now):
                        self._link.hello(now, page)  # a page that asks is there
                    self.playground.hear(content)
                    self.push()
            case "replies":
                with self._guard:
                    self._outbox.forget_replies()
            case "picture":
                with self._guard:
                    waiting = self._pictures.get(int(content["id"]))
                if waiting and buffers:
                    waiting[1].append(bytes(buffers[0]))
                    waiting[0].set()
            case kind:
                log.warning("the dashboard's page sent an unknown message: %r", kind)
