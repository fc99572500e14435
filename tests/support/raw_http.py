"""HTTP as bytes: what no client would send, and answers as they came over the wire."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any, cast

from support.serving import KEY, PATIENCE_S, Serving

CLOSE = "Connection: close"


def request(
    method: str,
    target: str,
    body: Mapping[str, object] | bytes | None = None,
    *headers: str,
    version: str = "1.1",
    key: str = KEY,
) -> bytes:
    """One request; with a body, also what it is and how long."""
    lines = [f"{method} {target} HTTP/{version}", "Host: test", f"Authorization: Bearer {key}"]
    raw = json.dumps(body).encode() if isinstance(body, Mapping) else body or b""
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(raw)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + raw


def connect(served: Serving) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.server.port), PATIENCE_S)


def talk(served: Serving, *parts: bytes, half_close: bool = False) -> bytes:
    """Send the parts one by one; what came back until the server closed the connection."""
    with connect(served) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            sock.sendall(part)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65_536), b""))


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    """As it was sent but for chunks, which are put together."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[bytes]:
        return [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]


def answers(came: bytes, methods: Iterable[str]) -> list[Answer]:
    """Those to requests of these methods, as Python's own client reads them; and nothing else."""
    stream = _Bytes(came)
    found = [_read(stream, method) for method in methods]
    rest = stream.file.read()
    assert rest == b"", rest
    return found


def answer(came: bytes, method: str = "POST") -> Answer:
    return answers(came, [method])[0]


def _read(stream: _Bytes, method: str) -> Answer:
    reader = HTTPResponse(cast("socket.socket", stream), method=method)
    reader.begin()
    body = reader.read()
    headers = {name.lower(): value for name, value in reader.getheaders()}
    return Answer(reader.status, headers, body)


class _Bytes:
    """A socket of which only `makefile` is used; what one answer leaves, the next one reads."""

    def __init__(self, came: bytes) -> None:
        import io

        self.file = _Unclosed(io.BytesIO(came))

    def makefile(self, mode: str) -> _Unclosed:
        return self.file


class _Unclosed:
    """Stays open when an answer has been read from it."""

    def __init__(self, file: Any) -> None:
        self.read, self.readline, self.readinto = file.read, file.readline, file.readinto
        self.read1, self.peek = file.read1, getattr(file, "peek", None)
        self.closed = False

    def close(self) -> None:
        pass

    def flush(self) -> None:
        pass
