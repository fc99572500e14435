"""One record per request in the front, from its admission to its end."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from llmserve.core.types import Request, WaitReason
from llmserve.scheduling.lazy_heap import Key
from llmserve.scheduling.ledger import TenantUsage

Status = Literal["waiting", "dispatched", "running", "ended"]
"""Dispatched: in the engine, and without a token yet. Running: it has its first token."""


class Entry(msgspec.Struct, eq=False):
    """A request's state. Everything else that names the request holds its id only."""

    request: Request
    usage: TenantUsage
    """Its tenant's slots and service. A tenant's usage is never forgotten while it has an entry."""
    admitted_s: float
    """When it was admitted: both timeouts count from here."""
    charged: bool = False
    """It drew tokens from its tenant's bucket (`rate_limit_tps`)."""
    status: Status = "waiting"
    wait_reason: WaitReason | None = None
    """Why it waits; None until that was asked, and from its dispatch on."""
    first_token_due_s: float | None = None
    """When its first token was predicted to come, where it had to wait and that was asked."""
    reply_tokens: float = 0.0
    """Expected length of its reply, as of when it was queued: a key must not shrink later."""
    rank: Key | None = None
    """The key that the queue's ranks know it by, while they are kept."""
    dispatched_s: float = 0.0
    emitted_tokens: int = 0
    handle: Any = None
    """What the service keeps of it, its client's stream among that. Nothing here looks at it."""

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def tenant(self) -> str:
        return self.request.tenant

    @property
    def waits(self) -> bool:
        return self.status == "waiting"
