"""Authentication: a request needs a key.

The key is also what stands between this port and web pages in the user's browser. No CORS header
is sent but to the origins of `cors.py`, and a page that rebinds a name to 127.0.0.1 reaches the
port but does not know the key; so the Host header is not checked, and any name or proxy in front
works.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from llmserve.entrypoints.http.asgi import JsonAnswer
from llmserve.entrypoints.http.errors import ApiError
from llmserve.serving.api_keys import Holder, Keyring

OPEN_PATHS = frozenset({"/health", "/openapi.json", "/docs"})
"""A probe needs no key, and learns one bit; a page that a browser opens can bring none, and tells
what the source tells. /metrics needs it: it names tenants and the model."""

_TENANT_PATHS = ("/v1/", "/tokenize", "/detokenize")
"""The paths that a tenant's key opens. Knobs, requests and metrics are of all, so they are the
owner's."""

_KEY_HEADERS = frozenset({b"authorization", b"x-api-key", b"api-key"})
"""OpenAI's clients send the key in the first, Anthropic's in the second, Azure's in the third."""

_HOLDER = "llmserve.holder"


class KeyGate:
    """ASGI middleware: 401 without a key, 403 where a tenant's key gives no access.

    A right key opens in any header where one may stand, whatever else is sent beside it: proxies
    add credentials of their own. The server's own key counts before a tenant's.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self._app = app
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            brought = _brought(scope)
            holder = self._keyring.holder(map(_key, brought))
            if holder is None:
                await JsonAnswer(send).fail(_refusal(bool(brought)))
                return
            if holder.tenant is not None and not scope["path"].startswith(_TENANT_PATHS):
                await JsonAnswer(send).fail(_not_yours())
                return
            scope[_HOLDER] = holder
        await self._app(scope, receive, send)


def tenant_of_key(scope: Scope) -> str | None:
    """The tenant whose key was brought; None where it was the session's own, or none is asked."""
    holder: Holder | None = scope.get(_HOLDER)
    return None if holder is None else holder.tenant


def _brought(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers that may hold a key, in the order in which they came."""
    return [(name, value) for name, value in scope["headers"] if name in _KEY_HEADERS and value]


def _key(header: tuple[bytes, bytes]) -> bytes:
    """The key of such a header; empty, which is nobody's, for another scheme than Bearer."""
    name, value = header
    if name != b"authorization":
        return value
    scheme, _, token = value.strip().partition(b" ")
    return token if scheme.lower() == b"bearer" else b""


def _refusal(brought: bool) -> ApiError:
    message = (
        "Incorrect API key provided."
        if brought
        else "No API key was provided. Send it as `Authorization: Bearer KEY`, `x-api-key: KEY` or "
        "`api-key: KEY`."
    )
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _not_yours() -> ApiError:
    return ApiError(
        403, "This API key is a tenant's; here only the server's own leads.",
        code="insufficient_permissions",
    )  # fmt: skip
