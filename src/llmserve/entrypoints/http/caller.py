"""Who asks, how urgently, and by when: body fields first, then headers, then the defaults."""

from __future__ import annotations

import math

import msgspec
from starlette.types import Scope

from llmserve.core.knobs import SPECS
from llmserve.core.tenants import NAMES, is_name
from llmserve.entrypoints.http.auth import tenant_of_key
from llmserve.entrypoints.http.errors import ApiError

_FARTHEST_PRIORITY = 2**31 - 1


class Claims(msgspec.Struct, kw_only=True):
    """What a body may say of its sender, whichever route it is for."""

    priority: int | None = None
    tenant: str | None = None
    ttft_slo_ms: float | None = None


class Caller(msgspec.Struct, frozen=True):
    priority: int = 0
    tenant: str = "default"
    ttft_slo_ms: float | None = None
    """None takes what is agreed with the tenant, and else the knob."""


def sender(scope: Scope, claims: Claims) -> Caller:
    """ApiError 400 where a claim makes no sense.

    A tenant's own key says whose request it is, whatever else is claimed.
    """
    headers = dict(scope["headers"])
    tenant = tenant_of_key(scope) or claims.tenant
    priority, slo_ms = claims.priority, claims.ttft_slo_ms
    if tenant is None:
        tenant = headers.get(b"x-tenant", b"default").decode("utf-8", "replace")
    if not is_name(tenant):
        raise _wrong("tenant", NAMES)
    if priority is None:
        priority = _whole(headers.get(b"x-priority", b"0"))
    if abs(priority) > _FARTHEST_PRIORITY:
        raise _wrong("priority", f"priority must be within ±{_FARTHEST_PRIORITY}")
    if slo_ms is None and b"x-ttft-slo-ms" in headers:
        slo_ms = _milliseconds(headers[b"x-ttft-slo-ms"])
    low, high = SPECS["ttft_slo_ms"].low or 0.0, SPECS["ttft_slo_ms"].high or math.inf
    if slo_ms is not None and not low <= slo_ms <= high:
        raise _wrong("ttft_slo_ms", f"ttft_slo_ms must be within {low:g} and {high:.0f} ms")
    return Caller(priority, tenant, slo_ms)


def _whole(header: bytes) -> int:
    try:
        return int(header[:12])
    except ValueError:
        raise _wrong("priority", "the X-Priority header takes a whole number") from None


def _milliseconds(header: bytes) -> float:
    try:
        return float(header[:24])
    except ValueError:
        raise _wrong("ttft_slo_ms", "the X-TTFT-SLO-MS header takes milliseconds") from None


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")
