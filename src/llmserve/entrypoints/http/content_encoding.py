"""Content-Encoding of a request's body: gzip and deflate, undone piece by piece, under a bound.

Nothing is decoded beyond a piece that was asked for, so a body that would grow a thousandfold
takes no more memory than one that came plain.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from starlette.types import Scope

from llmserve.entrypoints.http.errors import ApiError

PIECE_BYTES = 64 * 1024
"""The most that is decoded at once; the loop serves others between two pieces."""
MOST_CODINGS = 4
"""The most codings of one body, one over the other."""
MOST_MEMBERS = 1024
"""The most gzip streams that one body may string together, as some tools write it in blocks."""

_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
_GZIP_NAMES = frozenset({b"gzip", b"x-gzip"})
_HEADERS = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})


def codings(scope: Scope) -> list[bytes]:
    """What was done to the body, in order; ApiError 415 where that cannot be undone."""
    lines = [value for name, value in scope["headers"] if name == b"content-encoding"]
    words = [word.strip().lower() for word in b",".join(lines).split(b",")]
    found = [word for word in words if word not in (b"", b"identity")]
    for word in found:
        if word != b"deflate" and word not in _GZIP_NAMES:
            raise _unread(f"the Content-Encoding {word.decode('latin-1')!r} is not read here")
    if len(found) > MOST_CODINGS:
        raise _unread(f"{len(found)} codings of one body are more than {MOST_CODINGS}")
    return found


def as_read(scope: Scope, body: bytes) -> Scope:
    """The scope for whoever gets the body as it was read: decoded, and JSON where nothing was
    said."""
    names = {name for name, _ in scope["headers"]}
    if b"content-encoding" not in names and (b"content-type" in names or not body):
        return scope
    headers = [pair for pair in scope["headers"] if pair[0] not in _HEADERS]
    if b"content-type" not in names:
        headers.append((b"content-type", b"application/json"))
    return {**scope, "headers": [*headers, (b"content-length", b"%d" % len(body))]}


class Decoding:
    """Undoes the codings of one body; with none of them it passes on what comes."""

    def __init__(self, codings: list[bytes]) -> None:
        self._layers = [_Layer(coding) for coding in reversed(codings)]
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what these bytes come to, in pieces of at most PIECE_BYTES, some of them empty;
        read them all. ApiError 400 where they are not what the header says."""
        self._begun = self._begun or bool(data)
        return self._through(data, 0)

    def end(self) -> None:
        """The body has ended: ApiError 400 where there should be more of it. One of no bytes at all
        is empty in any coding."""
        if self._begun and not all(layer.ended for layer in self._layers):
            raise _corrupt("it ends too early")

    @property
    def between(self) -> int:
        """The most bytes that have passed from one layer to another: they need a bound, too."""
        return max((layer.out for layer in self._layers), default=0)

    def _through(self, data: bytes, at: int) -> Iterator[bytes]:
        if at == len(self._layers):
            yield data
            return
        for piece in self._layers[at].feed(data):
            if not piece or at + 1 < len(self._layers):
                yield b""  # the reader may look at `between`, and serve others
            yield from self._through(piece, at + 1)


class _Layer:
    """One coding."""

    def __init__(self, coding: bytes) -> None:
        self._gzip = coding in _GZIP_NAMES
        self._stream = zlib.decompressobj(_GZIP) if self._gzip else None
        self._head = b""
        self._members = 1
        self.out = 0

    @property
    def ended(self) -> bool:
        return self._stream is not None and self._stream.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._stream is None:
            self._head = data = self._head + data
            if len(data) < 2:
                return
            self._stream = zlib.decompressobj(_deflate(data))
        piece = b""
        while data or len(piece) == PIECE_BYTES:  # then zlib may hold more than came out
            if data and self._stream.eof:
                self._stream = self._next_member()
            try:
                piece = self._stream.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise _corrupt(str(error)) from None
            self.out += len(piece)
            yield piece
            data = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail

    def _next_member(self) -> zlib._Decompress:
        if not self._gzip:
            raise _corrupt("there are bytes behind its end")
        if self._members == MOST_MEMBERS:
            raise _corrupt(f"it strings together more than {MOST_MEMBERS} gzip streams")
        self._members += 1
        return zlib.decompressobj(_GZIP)


def _deflate(head: bytes) -> int:
    """How a deflate body is wrapped: by zlib, as HTTP has it, or not at all, as some send it."""
    first, second = head[:2]
    wrapped = first & 0x0F == zlib.DEFLATED and first >> 4 <= 7 and (first << 8 | second) % 31 == 0
    return _ZLIB if wrapped else _RAW


def _unread(why: str) -> ApiError:
    return ApiError(
        415,
        f"{why}: send the body plain, or as gzip or deflate",
        code="unsupported_encoding",
        headers={"accept-encoding": "gzip, deflate, identity"},
    )


def _corrupt(why: str) -> ApiError:
    return ApiError(
        400, f"the body is not what its Content-Encoding says: {why}", code="invalid_encoding"
    )
