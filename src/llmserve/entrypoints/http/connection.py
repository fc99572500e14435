"""One client's connection: uvicorn's, with the bounds that it has not on what no key guards yet.

A head (or a body's trailers) of any length was kept in ten times its bytes, who connected and
sent nothing, or half a head, stayed for ever, and enough of those left the kernel no file to open.
And with what it does not do for clients of another kind: those that close their half of the
connection after the request, speak HTTP/1.0, or would rather speak HTTP/2 or WebSocket.
"""

from __future__ import annotations

import asyncio
import resource
from functools import partial

import httptools
from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from llmserve.entrypoints.http.half_closed import HalfClosed
from llmserve.entrypoints.http.leaving import Exchange

MAX_HEAD_BYTES = 64 * 1024
"""The longest request line and headers; the rest of the read that ends them comes on top."""
HEAD_TIMEOUT_S = 60.0
"""How long a client may take to send them, from its connection or their first byte on."""
RESERVED_FILES = 256
"""Of the files that a process may have open, those that connections leave to the rest of it; half
of them where there are few."""


class Connection(HttpToolsProtocol):
    """Counts what has led to no request and no body yet, and knows which request is answered."""

    _pending = 0
    _alarm: asyncio.TimerHandle | None = None
    _answering: RequestResponseCycle | None = None
    """While `cycle` is the newest request, which may wait behind it."""
    _exchange: Exchange | None = None
    """Of the request that is answered."""
    _half: HalfClosed | None = None
    _ended = False
    """No request is read from here on."""
    _refit = False
    """The request asks for another protocol; it is read anew as if it did not."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = max(files // 2, files - RESERVED_FILES)
        if files != resource.RLIM_INFINITY and len(self.connections) > most:
            transport.abort()
        self._set_alarm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._heard()
        if self._half is not None:
            self._half.stop()
        if self._answering is not None:
            self._answering.disconnected = not self._answering.response_complete
            self._answering.message_event.set()
            if self._exchange is not None and self._answering.disconnected:
                self._exchange.leave()
        self._exchange_over()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio has it
        """The client sends no more: whether the connection stays open for what it waits for."""
        answer = self._last_answer()
        if answer is not None:
            self._half = HalfClosed(self.loop, self.transport, lambda: self._answering or answer)
            self._half.look()
        return answer is not None

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read, behind the answers that are due to what could be."""
        if self._last_answer() is not None:
            self._ended = True
        elif self._idle or not self.cycle.response_started:
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._pending += len(data)
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        if self._pending > MAX_HEAD_BYTES:
            self._refuse(f"The headers are longer than {MAX_HEAD_BYTES} bytes.")
        elif self._pending and self._alarm is None:
            self._set_alarm()

    def _feed(self, data: bytes) -> None:
        """To the parser, which stops at a request for another protocol and takes its body for that.
        Java's own client asks for HTTP/2 with each request."""
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._refit:
                    raise httptools.HttpParserError("CONNECT is for proxies") from None
                self._refit = False
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        parser = self.parser
        line = b"%s %s HTTP/%s" % (
            parser.get_method(), self.url, parser.get_http_version().encode()
        )  # fmt: skip
        kept = [b"%s: %s" % pair for pair in self.headers if pair[0] != b"upgrade"]
        return b"\r\n".join([line, *kept, b"", b""])

    def on_headers_complete(self) -> None:
        self._refit = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._refit:
            return
        self._heard()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._heard()
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._refit:
            return
        self._heard()
        super().on_message_complete()
        if self.cycle is self._answering and self._exchange is not None:
            self._exchange.body_is_here = True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        self._exchange = Exchange(body_is_here=not cycle.more_body)
        self._exchange.write = partial(_write, cycle)
        self._exchange.enter(cycle.scope)
        if cycle.scope["http_version"] != "1.1":
            _as_before_1_1(cycle)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self._exchange_over()
        super().on_response_complete()

    def _exchange_over(self) -> None:
        """Nothing more is written of this answer: without the way to, who holds whom is no ring,
        and what an answer held is free at once rather than when the collector looks."""
        if self._exchange is not None:
            self._exchange.write = None

    def _last_answer(self) -> RequestResponseCycle | None:
        """No more requests come: the last that is to be answered, if one is. One that was cut
        short is none."""
        if self._idle:
            return None
        if self.cycle.more_body:
            if not self.pipeline:
                return None
            self.pipeline.popleft()
            before = self.pipeline[0][0] if self.pipeline else self._answering
            assert before is not None  # it waited behind that
            self.cycle = before
        self.cycle.keep_alive = False
        return self.cycle

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


def _write(cycle: RequestResponseCycle, body: bytes) -> bool:
    """As the cycle's `send` writes a part of a body that is not the last, without a task."""
    if cycle.flow.write_paused:
        return False
    if not (cycle.disconnected or cycle.response_complete):
        assert cycle.response_started, "the head goes first"
        if cycle.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (len(body), body)
        cycle.transport.write(body)
    return True


def _as_before_1_1(cycle: RequestResponseCycle) -> None:
    """An HTTP/1.0 client knows no chunks and no interim answers: what has no length of its own ends
    with the connection, which uvicorn does close."""
    send = cycle.send

    async def unchunked(message: ASGISendEvent) -> None:
        if message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.chunked_encoding = False  # as if that were decided
    cycle.waiting_for_100_continue = False
    cycle.send = unchunked  # type: ignore[method-assign]
