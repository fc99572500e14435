"""Builds the messages that one page lacks: content and buffers. It sends nothing itself.

The charts, why it is slow, the tape and the playground are kinds of message apart, so that a fat
tape never delays a chart. A saved report is the same messages, all at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from llmserve.core.knobs import KnobBoard, Knobs, KnobValue
from llmserve.dashboard.batch_tape import KINDS, STEPS, UPDATE_BYTES, Cursor
from llmserve.dashboard.codec import Frame, encode
from llmserve.dashboard.controls import Controls
from llmserve.dashboard.latency_panel import LatencyPanel
from llmserve.dashboard.page_link import PageLink
from llmserve.dashboard.panels import COLUMNS, WINDOW_S
from llmserve.dashboard.playground import Playground
from llmserve.dashboard.recorder import SeriesRecorder
from llmserve.dashboard.replies import PageState
from llmserve.dashboard.series import CAPACITY

PERIOD_S = 0.2
Message = tuple[dict[str, object], list[bytes]]


class PageMessages:
    """Not for several threads at once: its owner has a lock."""

    def __init__(
        self,
        recorder: SeriesRecorder,
        board: KnobBoard,
        controls: Controls,
        about: Mapping[str, str | int | None],
        link: PageLink,
        playground: Playground | None,
    ) -> None:
        """`playground`: of a live page; one without it has no controls either that would have to
        know what was sent."""
        self._recorder = recorder
        self._board = board
        self._controls = controls
        self._about = about
        self._link = link
        self._playground = playground
        self._live = playground is not None
        self.ended = ""
        """Why no more will come, once that is so."""
        self._marks_sent = 0
        self._knobs: tuple[Knobs | None, dict[str, KnobValue]] = (None, {})
        self._state_sent: dict[str, object] = {}
        self._explained_sent = LatencyPanel()
        self._tape_sent: Cursor | None = None
        """None: the page has nothing of the tape, or has lost some."""
        self._tape_seq = 0
        self._replies_sent: PageState | None = None
        self._replies_seq = 0

    def messages(self, whole: bool) -> Iterator[Message]:
        """All there is for a page that has nothing, else what is new."""
        if whole:
            self.forget_tape()
            self.forget_replies()
            self._explained_sent = LatencyPanel()
        yield from self._rows(whole)
        yield from self._why()
        yield from self._tape()
        yield from self._replies()

    def copy(self) -> PageMessages:
        """Of the same session, for a page that has nothing."""
        return PageMessages(
            self._recorder, self._board, self._controls, self._about, PageLink(), None
        )

    def forget_tape(self) -> None:
        """The page has lost some of it: send it whole."""
        self._tape_sent = None

    def forget_replies(self) -> None:
        """The page has lost some of them: send them whole."""
        self._replies_sent = None

    def _rows(self, whole: bool) -> Iterator[Message]:
        position, times, values = self._recorder.rows(0 if whole else self._link.position)
        content = self._news(whole)
        if whole:
            content |= self._constants()
        elif not len(times) and not content:
            return
        seq = self._link.sent(position)
        content |= {"kind": "snapshot" if whole else "delta", "seq": seq}
        yield content, [encode(Frame(seq, times, values))]

    def _why(self) -> Iterator[Message]:
        explained = self._recorder.explained()
        if explained != self._explained_sent:
            self._explained_sent = explained
            yield explained.as_json(), []

    def _tape(self) -> Iterator[Message]:
        """Numbered on its own: a page that misses some asks for the whole."""
        whole = self._tape_sent is None
        cursor = self._tape_sent or Cursor()
        news = self._recorder.tape.news(cursor, limit=None if whole else UPDATE_BYTES)
        self._tape_sent = news.cursor
        if news.empty and not whole:
            return
        self._tape_seq += 1
        content: dict[str, object] = {
            "kind": "tape", "seq": self._tape_seq, "whole": whole, "first": news.first_step,
            "rows": news.rows,
        }  # fmt: skip
        if whole:
            content |= {"kinds": KINDS, "capacity": STEPS}
        yield content, [news.steps, news.segments]

    def _replies(self) -> Iterator[Message]:
        """Numbered on their own, as the tape is."""
        if self._playground is None:
            return
        whole = self._replies_sent is None
        content, self._replies_sent = self._playground.news(self._replies_sent)
        if content is not None:
            self._replies_seq += 1
            yield {"kind": "replies", "seq": self._replies_seq, "whole": whole, **content}, []

    def _news(self, whole: bool) -> dict[str, object]:
        """What changed besides the rows; all there is for a snapshot."""
        revision, marks = self._recorder.marks(0 if whole else self._marks_sent)
        self._marks_sent = revision
        if self._knobs[0] is not self._board.current:
            self._knobs = (self._board.current, self._board.current.as_dict())
        knobs = self._knobs[1]
        state: dict[str, object] = {
            "knobs": knobs,
            "panels": self._recorder.panels(),
            "status": self.ended or self._controls.status,
            "empty": not self._recorder.requests_seen,
            "ended": bool(self.ended),
        }
        again = {"knobs"} if self._live and self._controls.take_changed() else set()
        news = {
            name: value
            for name, value in state.items()
            if whole or name in again or value != self._state_sent.get(name)
        }
        self._state_sent = state
        if "knobs" in news and self._live:
            self._controls.note_sent(knobs)
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
