"""A client that has said its last byte: it waits for its answer, or it is gone.

Both look the same, for closing a connection and closing one half of it send the same FIN. But what
is closed answers data with a reset. So such a client is sent the next byte of its answer that does
not depend on what the answer will be: of the status line's beginning before there is a head, and
in a stream a zero in front of the next chunk's size.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_ALIKE = b"HTTP/1.1 "
"""Begins every answer, and an interim one, too."""
_FIRST_LOOK_S = 0.005
_LAST_LOOK_S = 1.0
"""How soon the connection is looked at after the first byte, and how often in the end."""
_NEXT_BYTE_S = 1.0
"""When the second byte is sent; each further one waits twice as long, and one more second."""


class HalfClosed:
    """Watches one such connection, and aborts it when its client proves to be gone."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        answering: Callable[[], RequestResponseCycle],
    ) -> None:
        """answering: the request that is being answered now."""
        self._loop = loop
        self._transport = transport
        self._answering = answering
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket").fileno(), 0)
        self._timer: asyncio.TimerHandle | None = None
        self._pause = _FIRST_LOOK_S
        self._passed, self._due = 0.0, 0.0
        self._zeros = 0

    def look(self) -> None:
        """Look now, and again later, until the connection is lost."""
        self.stop()
        if self._transport.is_closing():
            return
        if self._passed >= self._due:
            self._due = 2 * self._due + _NEXT_BYTE_S
            self._send(self._answering())
        if self._poll.poll(0):  # it was asked for nothing: that is a reset
            self._transport.abort()
            return
        self._passed += self._pause
        self._timer = self._loop.call_later(self._pause, self.look)
        self._pause = min(2 * self._pause, _LAST_LOOK_S)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send(self, cycle: RequestResponseCycle) -> None:
        if not cycle.response_started:
            begun: Any = cycle.transport
            if not isinstance(begun, _Begun):
                begun = cycle.transport = _Begun(cycle)  # type: ignore[assignment]  # as it is used
            begun.begin()
        elif cycle.chunked_encoding and not cycle.response_complete and not self._zeros:
            self._zeros += 1  # later ones would add up, and what is written shows it by then
            self._transport.write(b"0")


class _Begun:
    """The transport of an answer whose first bytes have left already."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._transport = cycle.transport
        self._sent = 0

    def begin(self) -> None:
        self._transport.write(_ALIKE[self._sent : self._sent + 1])
        self._sent = min(self._sent + 1, len(_ALIKE))

    def write(self, data: bytes) -> None:
        self._cycle.transport = self._transport
        self._transport.write(data[self._sent :])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
