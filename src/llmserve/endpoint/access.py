"""Who may come in: whoever knows the key.

The key is also what stands between this port and web pages in the user's browser. No CORS header
is ever sent, and a page that rebinds a name to 127.0.0.1 reaches the port but does not know the
key; so the Host header is not checked, and any name or proxy in front works.
"""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from llmserve.endpoint.answers import Answer
from llmserve.endpoint.errors import ApiError

_OPEN_PATHS = frozenset({"/health"})
"""A probe needs no key, and learns one bit. /metrics needs it: it names tenants and the model."""


class ApiKey:
    """Holds the key so that no repr, log or traceback of what holds this shows it."""

    __slots__ = ("_key",)

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def __repr__(self) -> str:
        return "ApiKey(hidden)"

    def opens(self, authorization: bytes) -> bool:
        """In constant time: how much of a guess was right is not told."""
        scheme, _, token = authorization.partition(b" ")
        right = hmac.compare_digest(token.strip(), self._key)
        return right and scheme.lower() == b"bearer"


class KeyGate:
    """ASGI middleware: 401 for whoever does not bring the key."""

    def __init__(self, app: ASGIApp, key: ApiKey) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            authorization = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
            if not self._key.opens(authorization):
                await Answer(send).fail(_refusal(bool(authorization)))
                return
        await self._app(scope, receive, send)


def _refusal(brought: bool) -> ApiError:
    message = (
        "Incorrect API key provided."
        if brought
        else "No API key was provided. Send it as `Authorization: Bearer KEY`."
    )
    return ApiError(
        401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"}
    )
