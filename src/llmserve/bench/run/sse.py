"""Server-sent events out of a stream of bytes, however it was cut. Pure: no I/O."""

from __future__ import annotations

MOST = 2**24
"""Bytes of one event; a server that sends more has lost its way."""
_BOM = b"\xef\xbb\xbf"


class TooLong(ValueError):
    """An event has no end in sight."""


class Events:
    """The `data` of each event, as soon as its empty line has come.

    Lines end by LF, CR or both, which may come apart. Comments (servers send them to keep a
    connection alive), names, ids and events without data are passed over, and so is an event
    whose empty line never comes.
    """

    def __init__(self) -> None:
        self._rest = b""
        """A line that has no end yet."""
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._begun = False

    def feed(self, read: bytes) -> list[bytes]:
        """What has become whole. TooLong where one event outgrows MOST."""
        if self._after_cr and read:
            self._after_cr = False
            read = read[1:] if read.startswith(b"\n") else read
        whole = self._rest + read
        if not self._begun and len(whole) >= len(_BOM):
            self._begun, whole = True, whole.removeprefix(_BOM)
        if b"\r" in whole:
            self._after_cr = whole.endswith(b"\r")
            whole = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = whole.split(b"\n")
        found = [event for line in lines if (event := self._line(line)) is not None]
        if len(self._rest) + self._size > MOST:
            raise TooLong(f"an event of more than {MOST:,} bytes")
        return found

    def _line(self, line: bytes) -> bytes | None:
        if not line:
            return self._event()
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            self._data.append(value)
            self._size += len(value)
        return None

    def _event(self) -> bytes | None:
        if not self._data:
            return None
        data, self._data, self._size = b"\n".join(self._data), [], 0
        return data
