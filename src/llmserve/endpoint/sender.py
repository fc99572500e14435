"""Who asks, and how urgently: body fields first, then headers, then the defaults."""

from __future__ import annotations

import msgspec
from starlette.types import Scope

from llmserve.endpoint.access import tenant_of_key
from llmserve.endpoint.errors import ApiError

_LONGEST_TENANT = 128
_FARTHEST_PRIORITY = 2**31 - 1


class Sender(msgspec.Struct, frozen=True):
    priority: int = 0
    tenant: str = "default"


def sender(scope: Scope, priority: int | None, tenant: str | None) -> Sender:
    """`priority` and `tenant` as the body has them; ApiError 400 where one makes no sense.

    A tenant's own key says whose request it is, whatever else is claimed.
    """
    headers = dict(scope["headers"])
    tenant = tenant_of_key(scope) or tenant
    if tenant is None:
        tenant = headers.get(b"x-tenant", b"default").decode("utf-8", "replace")
    if not 0 < len(tenant) <= _LONGEST_TENANT or not tenant.isprintable():
        raise _wrong("tenant", f"a tenant is 1 to {_LONGEST_TENANT} printable characters")
    if priority is None:
        priority = _whole(headers.get(b"x-priority", b"0"))
    if abs(priority) > _FARTHEST_PRIORITY:
        raise _wrong("priority", f"priority must be within ±{_FARTHEST_PRIORITY}")
    return Sender(priority, tenant)


def _whole(header: bytes) -> int:
    try:
        return int(header[:12])
    except ValueError:
        raise _wrong("priority", "the X-Priority header takes a whole number") from None


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")
