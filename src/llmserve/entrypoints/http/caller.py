"""The caller of a request, its priority and deadline: body fields first, then headers, then the
defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.types import Scope

from llmserve.core.bounds import BOUNDS
from llmserve.core.types import blame
from llmserve.core.validation import number
from llmserve.entrypoints.http.auth import tenant_of_key
from llmserve.serving.requests import Sender


class Claims(msgspec.Struct, kw_only=True):
    """The fields by which a body names its sender, on any route."""

    priority: Any = None
    tenant: Any = None
    ttft_slo_ms: Any = None


def sender(scope: Scope, claims: Claims) -> Sender:
    """The sender of a request; ParamError where a claim makes no sense.

    A tenant's own key says whose request it is, whatever else is claimed.
    """
    headers = dict(scope["headers"])
    tenant = tenant_of_key(scope) or claims.tenant
    priority, slo_ms = claims.priority, claims.ttft_slo_ms
    if tenant is None:
        tenant = headers.get(b"x-tenant", b"default").decode("utf-8", "replace")
    if priority is None:
        priority = _typed("priority", headers, b"x-priority")
    if slo_ms is None:
        slo_ms = _typed("ttft_slo_ms", headers, b"x-ttft-slo-ms")
    return Sender(0 if priority is None else priority, tenant, slo_ms)


def _typed(name: str, headers: Mapping[bytes, bytes], header: bytes) -> Any:
    """A number that was typed into a header; None where there is no such header."""
    if header not in headers:
        return None
    try:
        typed = number(headers[header].decode("latin-1"))
        return BOUNDS[name].read(typed, called=f"the {header.decode()} header")
    except ValueError as error:
        raise blame(name, error) from None
