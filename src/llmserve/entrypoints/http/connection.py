"""One client's connection: uvicorn's, with the bounds that it has not on what no key guards yet.

A head (or a body's trailers) of any length was kept in ten times its bytes, who connected and
sent nothing, or half a head, stayed for ever, and enough of those left the kernel no file to open.
"""

from __future__ import annotations

import asyncio
import resource

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""The longest request line and headers; the rest of the read that ends them comes on top."""
HEAD_TIMEOUT_S = 60.0
"""How long a client may take to send them, from its connection or their first byte on."""
RESERVED_FILES = 256
"""Of the files that a process may have open, those that connections leave to the rest of it; half
of them where there are few."""


class Connection(HttpToolsProtocol):
    """Counts what has led to no request and no body yet."""

    _pending = 0
    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = max(files // 2, files - RESERVED_FILES)
        if files != resource.RLIM_INFINITY and len(self.connections) > most:
            transport.abort()
        self._set_alarm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._heard()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._pending += len(data)
        super().data_received(data)
        if self._pending > MAX_HEAD_BYTES:
            self._refuse(f"The headers are longer than {MAX_HEAD_BYTES} bytes.")
        elif self._pending and self._alarm is None:
            self._set_alarm()

    def on_headers_complete(self) -> None:
        self._heard()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._heard()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._heard()
        super().on_message_complete()

    def _heard(self) -> None:
        self._pending = 0
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _set_alarm(self) -> None:
        self._alarm = self.loop.call_later(HEAD_TIMEOUT_S, self._too_slow)

    def _too_slow(self) -> None:
        self._alarm = None
        if self._idle:  # else it may be a line's end too many, behind the body
            self._refuse(f"The headers did not arrive within {HEAD_TIMEOUT_S:g} s.")

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self, why: str) -> None:
        if self.transport.is_closing():
            return
        if self._idle:
            self.send_400_response(why)
        else:
            self.transport.abort()  # in the middle of an answer
