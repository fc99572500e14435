"""Pages in a browser: which origins may call the endpoint and read its answers. None by default.

An origin lets no one in: a page needs the key as all others do. It is only what makes the browser
show the page an answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from llmserve.core.validation import unlike

ANY = "*"
Origins = tuple[str, ...]

_METHODS = ("GET", "HEAD", "POST", "PATCH")
_PORTS = {"http": 80, "https": 443}


def read_origins(given: str | Iterable[str] | None) -> Origins:
    """The origins as a user gives them: a list, or text with commas. ValueError where one is not as
    a browser sends it, which would never fit."""
    if given is None:
        return ()
    if isinstance(given, str):
        given = given.split(",")
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise unlike("cors_origins", "a list of origins", given)
    found = tuple(dict.fromkeys(_origin(one) for one in given))
    if ANY in found and len(found) > 1:
        raise ValueError('cors_origins: "*" stands for all origins; give it alone, or not at all')
    return found


def _origin(given: object) -> str:
    if not isinstance(given, str):
        raise unlike("cors_origins", "a list of origins", given)
    origin = given.strip()
    if origin == ANY:
        return ANY
    if (cure := _cure(origin)) is not None:
        raise ValueError(f"cors_origins: {origin!r} is no origin as a browser sends it: {cure}")
    return origin


def _cure(origin: str) -> str | None:
    """What to write in its place; None where it is right."""
    if origin == "null":
        return 'any site can send that; serve the page from a host, or write "*" alone'
    if ANY in origin:
        return 'write each host in full, or "*" alone for all'
    if "://" not in origin:
        return f"write its scheme, as in 'https://{origin or 'app.example'}'"
    try:
        right = _as_sent(origin)
    except ValueError as error:
        return str(error)
    return None if origin == right else f"write {right!r}"


def _as_sent(origin: str) -> str:
    """Scheme, host in ASCII, and the port where it is not the scheme's own."""
    parts = urlsplit(origin)
    if not parts.hostname:
        raise ValueError("it names no host, as 'https://app.example' does")
    host = parts.hostname
    if not host.isascii():
        host = host.encode("idna").decode()
    if ":" in host:
        host = f"[{host}]"
    port = "" if parts.port in (None, _PORTS.get(parts.scheme)) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


class Cors:
    """ASGI middleware, around all others, so that errors carry its headers as well.

    A preflight is answered here, without a key, and only to a listed origin: for any other, and
    for who is no page, all is as if this were not here.
    """

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app = app
        self._origins = frozenset(origin.encode() for origin in origins)
        self._cors = CORSMiddleware(
            app, origins, _METHODS, allow_headers=("*",), allow_private_network=True,
            expose_headers=("*",),
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        listed = scope["type"] == "http" and any(
            name == b"origin" and (value in self._origins or b"*" in self._origins)
            for name, value in scope["headers"]
        )
        await (self._cors if listed else self._app)(scope, receive, send)
