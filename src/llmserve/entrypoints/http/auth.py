"""Authentication: a request needs a key.

The key is also what stands between this port and web pages in the user's browser. No CORS header
is ever sent, and a page that rebinds a name to 127.0.0.1 reaches the port but does not know the
key; so the Host header is not checked, and any name or proxy in front works.
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

_HOLDER = "llmserve.holder"


class KeyGate:
    """ASGI middleware: 401 without a key, 403 where a tenant's key gives no access.

    The key comes as OpenAI's clients send it, else as Anthropic's do (`x-api-key`).
    """

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self._app = app
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            authorization, key = (_header(scope, name) for name in (b"authorization", b"x-api-key"))
            by_key = self._keyring.holder_of(key)  # both are compared, whichever was brought
            holder = self._keyring.holder(authorization) if authorization else by_key
            if holder is None:
                await JsonAnswer(send).fail(_refusal(bool(authorization or key)))
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


def _header(scope: Scope, name: bytes) -> bytes:
    value: bytes = next((value for key, value in scope["headers"] if key == name), b"")
    return value


def _refusal(brought: bool) -> ApiError:
    message = (
        "Incorrect API key provided."
        if brought
        else "No API key was provided. Send it as `Authorization: Bearer KEY` or `x-api-key: KEY`."
    )
    return ApiError(
        401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"}
    )


def _not_yours() -> ApiError:
    return ApiError(
        403, "This API key is a tenant's; here only the server's own leads.",
        code="insufficient_permissions",
    )  # fmt: skip
