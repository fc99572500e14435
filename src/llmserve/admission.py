"""The door: take a request in, or say at once why not and when to return."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from llmserve.core import Request
from llmserve.events import RejectReason
from llmserve.knobs import Knobs
from llmserve.ledger import Bucket

UNKNOWN_DRAIN_RETRY_S = 1.0
"""Told as Retry-After while nothing has finished yet and no rate is known."""


class Accepted(msgspec.Struct, frozen=True):
    pass


class Rejected(msgspec.Struct, frozen=True):
    reason: RejectReason
    retry_after_s: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """What the door knows of the house."""

    waiting: int
    active: int
    finished_per_s: float | None
    """The drain rate lately measured; None before there is one."""
    max_model_len: int
    bucket: Bucket
    """Of the request's tenant."""


def admit(request: Request, load: Load, knobs: Knobs, now: float) -> Accepted | Rejected:
    prompt = len(request.prompt_ids)
    if prompt + 1 > load.max_model_len:
        return Rejected(
            "too_long",
            message=f"the prompt has {prompt} tokens, and with one more to generate they do not "
            f"fit the model's {load.max_model_len}",
        )
    if knobs.rate_limit_rps is not None:
        level = load.bucket.refill(knobs.rate_limit_rps, knobs.rate_burst, now)
        if level < 1:
            return Rejected(
                "rate_limit",
                (1 - level) / knobs.rate_limit_rps,
                f"tenant {request.tenant} sends more than {knobs.rate_limit_rps:g} requests/s",
            )
    verdict = _place(load, knobs)
    if knobs.rate_limit_rps is not None and isinstance(verdict, Accepted):
        load.bucket.take()
    return verdict


def _place(load: Load, knobs: Knobs) -> Accepted | Rejected:
    if load.active < knobs.active_cap and load.waiting == 0:
        return Accepted()
    if knobs.queue_mode == "reject":
        return Rejected(
            "no_place",
            _retry_after(1, load),
            f"all {knobs.active_cap} places are taken and queue_mode is reject",
        )
    if load.waiting >= knobs.queue_max:
        return Rejected(
            "queue_full",
            _retry_after(load.waiting - knobs.queue_max + 1, load),
            f"{load.waiting} requests wait already (queue_max={knobs.queue_max})",
        )
    return Accepted()


def _retry_after(places: int, load: Load) -> float:
    """Seconds until so many places should have come free at the measured rate."""
    if not load.finished_per_s:
        return UNKNOWN_DRAIN_RETRY_S
    return places / load.finished_per_s
