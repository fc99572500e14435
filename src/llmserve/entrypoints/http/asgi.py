"""Plain ASGI in and out: bodies read under a bound, answers sent, clients watched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmserve.entrypoints.http.content_encoding import Decoding, codings
from llmserve.entrypoints.http.errors import ApiError, ClientGone
from llmserve.entrypoints.http.leaving import Exchange, exchange_of

MAX_BODY_BYTES = 8 * 2**20
"""The longest request body taken, as it comes and as it is decoded; a longer one is 413."""
MAX_VALUES = 2**17
"""The most values in a body, besides one for each token of the context; with more it is 413. In a
million of them no stream went on for a second, nor would one beside a thread that parses them, for
it keeps the interpreter to itself. They are counted by the commas and brackets, in texts as well:
of those a text has fewer than tokens."""
BODY_TIMEOUT_S = 60.0
"""How long a client may take to send its body; then 408."""

DONE = b"data: [DONE]\n\n"
"""Ends every stream, good or bad."""

SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx, and hubs behind it, would hold tokens back
]


async def read_json(scope: Scope, receive: Receive, context: int = 0) -> bytes:
    """The whole body of a request that says it is JSON, decoded. ApiError, or ClientGone.

    context: of the model that is to read it, in tokens.
    """
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise ApiError(415, "send the body as JSON, with Content-Type: application/json")
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    decoding = Decoding(codings(scope)) if b"content-encoding" in headers else None
    reading, exchange = _read(receive, decoding, MAX_VALUES + context), exchange_of(scope)
    if exchange is not None and exchange.body_is_here:
        return await reading
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await reading
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None


async def _read(receive: Receive, decoding: Decoding | None, most_values: int) -> bytes:
    body, came, values = bytearray(), 0, 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        raw = message.get("body", b"")
        came += len(raw)
        for more in (raw,) if decoding is None else decoding.feed(raw):
            body += more
            values += sum(map(more.count, (b",", b"[", b"{")))
            between = 0 if decoding is None else decoding.between
            if max(came, len(body), between) > MAX_BODY_BYTES:
                raise _too_large()
            if values > most_values:
                raise _too_many(most_values)
            if more is not raw:  # decoding takes time that streams would miss
                await asyncio.sleep(0)
        if not message.get("more_body", False):
            if decoding is not None:
                decoding.end()
            return bytes(body)


def _too_large() -> ApiError:
    return ApiError(
        413, f"the body is longer than {MAX_BODY_BYTES} bytes", code="request_too_large"
    )


def _too_many(most: int) -> ApiError:
    return ApiError(
        413,
        f"the body has more than {most} commas and brackets: too many values to read at once; send "
        "fewer prompts or messages at a time, and prompts as text rather than as token ids",
        code="request_too_large",
    )


def json_response(content: object, headers: Mapping[str, str] | None = None) -> Response:
    """For routes that answer at once; the ones that generate use an `JsonAnswer`."""
    return Response(msgspec.json.encode(content), 200, headers, "application/json")


def error_events(error: ApiError) -> bytes:
    return b"data: " + error.body + b"\n\n" + DONE


class JsonAnswer:
    """One response. The status leaves with the first bytes, not before, so that an error that
    comes until then is still a status of its own."""

    def __init__(self, send: Send, exchange: Exchange | None = None) -> None:
        self._send, self._exchange = send, exchange
        self.headers: dict[str, str] = {}
        """Sent besides the answer's own, good or bad, if they are there when it begins."""
        self.failed: Callable[[ApiError], bytes] = error_events
        """The last events of a stream that an error ends."""
        self._streaming = False
        self._begun = False
        self._ended = False

    async def whole(
        self,
        body: bytes,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        kind: str = "application/json",
    ) -> None:
        fields = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
        await self._begin(status, fields, headers)
        await self._write(body, more=False)

    async def events(self, frames: bytes, *, more: bool = True) -> None:
        """Server-sent events, as many as there are."""
        if not self._begun:
            self._streaming = True
            await self._begin(200, SSE_HEADERS)
        await self._write(frames, more=more)

    def write_now(self, frames: bytes) -> bool:
        """As `events`, of a stream that has begun, without a wait; False, and nothing is sent,
        where that cannot be: the client does not keep up, or the server is not our own."""
        exchange = self._exchange
        return exchange is not None and exchange.write is not None and exchange.write(frames)

    async def fail(self, error: ApiError) -> None:
        """The error as a status, or as the last event of a stream that has begun."""
        if not self._begun:
            await self.whole(error.body, error.status, error.headers)
        elif self._streaming and not self._ended:
            await self.events(self.failed(error), more=False)

    async def _begin(
        self,
        status: int,
        headers: list[tuple[bytes, bytes]],
        more: Mapping[str, str] | None = None,
    ) -> None:
        self._begun = True
        if more or self.headers:
            named = [*(more or {}).items(), *self.headers.items()]
            headers = [*headers, *[(name.encode(), value.encode()) for name, value in named]]
        start = {"type": "http.response.start", "status": status, "headers": headers}
        await self._send(start)

    async def _write(self, body: bytes, *, more: bool) -> None:
        self._ended = not more
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
