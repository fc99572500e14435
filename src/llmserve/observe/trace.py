"""A session's events as JSON lines, to keep and to replay.

The first line is a TraceHeader (the only place where wall time appears), the last one a TraceEnd
that counts what was dropped. A replayed trace gives the figures of the live session, exactly,
where nothing was dropped.
"""

from __future__ import annotations

import datetime
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

import msgspec

from llmserve.core.events import Event
from llmserve.core.knobs import KnobValue

VERSION = 1
_FLUSH_S = 0.25
_BATCH = 4096


class TraceHeader(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    version: int = VERSION
    wall_time: str = ""
    """ISO 8601, UTC, when the trace was opened."""
    t: float | None = None
    """The session's clock at that moment: it ties the events' times to wall time."""
    model: str = ""
    engine: str = ""
    knobs: dict[str, KnobValue] = {}


class TraceEnd(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    events: int
    dropped: int


class TraceError(ValueError):
    """The file is no trace, or one of a version that this package does not read."""


@runtime_checkable
class NotesDrops(Protocol):
    """A fold that marks its figures when events are known to be missing."""

    def note_dropped(self, n: int) -> None: ...


class TraceWriter:
    """Attach to an EventBus; `close` when done. Encoding and writing happen in a thread.

    At most `capacity` events wait to be written; beyond that they are dropped and counted, as
    are those that a full disk refuses: `error` then says why.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        t: float | None = None,
        model: str = "",
        engine: str = "",
        knobs: Mapping[str, KnobValue] | None = None,
        capacity: int = 100_000,
    ) -> None:
        self.path = Path(path)
        self.events = 0
        self.error: str | None = None
        self._overflow = self._unwritten = 0  # two counts: each is of one thread alone
        self._capacity = capacity
        self._queue: deque[Event] = deque()
        self._encoder = msgspec.json.Encoder()
        self._closing = threading.Event()
        self._file: IO[bytes] = self.path.open("wb")  # in the caller, where an error is seen
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        header = TraceHeader(
            wall_time=now, t=t, model=model, engine=engine, knobs=dict(knobs or {})
        )
        try:
            self._put([header])
        except OSError:
            self._try(self._file.close)
            raise
        self._thread = threading.Thread(target=self._main, name="llmserve-trace", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        if len(self._queue) >= self._capacity or self._closing.is_set():
            self._overflow += 1
        else:
            self._queue.append(event)

    @property
    def dropped(self) -> int:
        return self._overflow + self._unwritten

    def close(self) -> TraceEnd:
        """Write what waits and the closing line. Safe to call twice. Detach from the bus first."""
        self._closing.set()
        self._thread.join()
        return TraceEnd(events=self.events, dropped=self.dropped)

    def _main(self) -> None:
        while not self._closing.wait(_FLUSH_S):
            self._write()
        self._write()
        self._try(self._put, [TraceEnd(events=self.events, dropped=self.dropped)])
        self._try(self._file.close)

    def _write(self) -> None:
        while self._queue:
            count = min(len(self._queue), _BATCH)
            batch = [self._queue.popleft() for _ in range(count)]
            if self.error is None and self._try(self._put, batch):
                self.events += count
            else:
                self._unwritten += count

    def _put(self, lines: Sequence[TraceHeader | Event | TraceEnd]) -> None:
        """Write and flush: a full disk is known before the lines are counted as written."""
        self._file.write(self._encoder.encode_lines(lines))
        self._file.flush()

    def _try(self, write: Callable[..., object], *arguments: object) -> bool:
        try:
            write(*arguments)
        except OSError as error:
            self.error = self.error or str(error)
            return False
        return True


class Trace:
    """A trace file. Iterate for its events, as often as wanted; nothing stays in memory.

    `dropped`, `damaged` and `warning` are those of the last complete iteration.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.dropped = 0
        """Events that the writer could not keep up with."""
        self.damaged = 0
        """Lines that could not be read, and were passed over."""
        self.warning: str | None = None
        """What is wrong with the file, in a sentence; None for a whole one."""
        self._decoder = msgspec.json.Decoder(Event | TraceEnd)
        with self.path.open("rb") as file:
            self.header = self._read_header(file.readline())

    @property
    def lost(self) -> int:
        return self.dropped + self.damaged

    def __iter__(self) -> Iterator[Event]:
        end: TraceEnd | None = None
        damaged = 0
        with self.path.open("rb") as file:
            file.readline()
            for line in file:
                try:
                    item = self._decoder.decode(line)
                except msgspec.MsgspecError:
                    damaged += 1
                    continue
                if isinstance(item, TraceEnd):
                    end = item
                else:
                    yield item
        self.dropped, self.damaged = 0 if end is None else end.dropped, damaged
        self.warning = self._warning(end)

    def _warning(self, end: TraceEnd | None) -> str | None:
        found = []
        if end is None:
            found.append("it has no closing line, so its writer did not end in order")
        elif end.dropped:
            found.append(f"its writer dropped {end.dropped} events")
        if self.damaged:
            found.append(f"{self.damaged} lines could not be read")
        return f"{self.path.name}: {'; '.join(found)}" if found else None

    def _read_header(self, line: bytes) -> TraceHeader:
        try:
            header = msgspec.json.decode(line, type=TraceHeader)
        except msgspec.MsgspecError as error:
            raise TraceError(f"{self.path} is no llmserve trace: {error}") from None
        if header.version != VERSION:
            raise TraceError(f"{self.path} is of version {header.version}; {VERSION} is read here")
        return header


def read_trace(path: str | Path) -> Trace:
    """Open a trace. TraceError where its first line is no header of ours, OSError as usual."""
    return Trace(path)


def replay(events: Iterable[Event], *folds: Callable[[Event], None]) -> None:
    """Give every event to every fold, in order; report losses to the folds that note them."""
    for event in events:
        for fold in folds:
            fold(event)
    if isinstance(events, Trace) and events.lost:
        for fold in folds:
            if isinstance(fold, NotesDrops):
                fold.note_dropped(events.lost)
