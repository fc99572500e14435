"""Admission control: admit a request to the queue, or say at once why not and when to return."""

from __future__ import annotations

import msgspec

from llmserve.core.events import RejectReason
from llmserve.core.knobs import Knobs
from llmserve.core.types import Request
from llmserve.scheduling.ledger import TenantUsage, footprint

UNKNOWN_RATE_RETRY_S = 1.0
"""The Retry-After while no slot has come free yet and no rate is known."""


class Accepted(msgspec.Struct, frozen=True):
    pass


class Rejected(msgspec.Struct, frozen=True):
    reason: RejectReason
    retry_after_s: float | None = None
    message: str = ""


class AdmissionState(msgspec.Struct, frozen=True):
    """Load of the front, and limits of the request's tenant, as one admission sees them."""

    waiting: int
    active: int
    max_model_len: int
    usage: TenantUsage
    ahead: int = 0
    """Waiting requests that would go before this one, by the policy as far as it is known."""
    free_per_s: float | None = None
    """Slots that come free each second, as lately measured; None before that is known."""
    first_token_s: float = 0.0
    """From dispatch to first token, as lately measured."""
    margin_s: float = 0.0
    """What a predicted wait must be raised by, as predictions lately proved wrong."""
    rate_limit_rps: float | None = None
    rate_limit_tps: float | None = None

    def must_wait(self, knobs: Knobs) -> bool:
        return self.slots_needed(knobs) > 0

    def slots_needed(self, knobs: Knobs) -> int:
        """Slots that must come free before this request's turn."""
        return max(0, self.ahead + 1 - max(0, knobs.active_cap - self.active))


def admit(request: Request, load: AdmissionState, knobs: Knobs, now: float) -> Accepted | Rejected:
    """Admit or reject a request. Every limit is checked before a token bucket is drawn from."""
    verdict = (
        _too_long(request, load)
        or _request_rate(request, load, knobs, now)
        or _token_rate(request, load, knobs, now)
        or _slot(request, load, knobs)
        or _objective(request, load, knobs, now)
    )
    if verdict is not None:
        return verdict
    if load.rate_limit_rps is not None:
        load.usage.bucket.take(request.choices)
    if load.rate_limit_tps is not None:
        load.usage.token_bucket.take(footprint(request))
    return Accepted()


def admit_kept(
    request: Request, load: AdmissionState, knobs: Knobs, now: float
) -> Accepted | Rejected:
    """Admit a request whose reply is cached: it takes no slot and no tokens, but is a request."""
    verdict = _request_rate(request, load, knobs, now)
    if verdict is None and load.rate_limit_rps is not None:
        load.usage.bucket.take(request.choices)
    return verdict or Accepted()


def _too_long(request: Request, load: AdmissionState) -> Rejected | None:
    prompt = len(request.prompt_ids)
    if prompt + 1 <= load.max_model_len:
        return None
    return Rejected(
        "too_long",
        message=f"the prompt has {prompt} tokens, and with one more to generate they do not "
        f"fit the model's {load.max_model_len}",
    )


def _request_rate(
    request: Request, load: AdmissionState, knobs: Knobs, now: float
) -> Rejected | None:
    rps = load.rate_limit_rps
    if rps is None:
        return None
    level = load.usage.bucket.refill(rps, knobs.rate_burst, now)
    needed = min(request.choices, knobs.rate_burst)  # more than the burst overdraw it
    if level >= needed or not request.choices:
        return None
    return Rejected(
        "rate_limit",
        (needed - level) / rps,
        f"tenant {request.tenant} sends more than {rps:g} requests/s",
    )


def _token_rate(
    request: Request, load: AdmissionState, knobs: Knobs, now: float
) -> Rejected | None:
    tps, burst = load.rate_limit_tps, knobs.rate_burst_tokens
    if tps is None:
        return None
    level = load.usage.token_bucket.refill(tps, burst, now)
    # a giant needs a full bucket, and overdraws it
    needed = min(request.choices * footprint(request), burst)
    if level >= needed or not request.choices:
        return None
    return Rejected(
        "rate_limit",
        (needed - level) / tps,
        f"tenant {request.tenant} asks for more than {tps:g} tokens/s",
    )


def _slot(request: Request, load: AdmissionState, knobs: Knobs) -> Rejected | None:
    free = 0 if load.waiting else max(0, knobs.active_cap - load.active)
    more = max(1, request.choices) - free
    if more <= 0:
        return None
    if knobs.queue_mode == "reject":
        return Rejected(
            "no_place",
            _retry_after(more, load),
            f"{free} of {knobs.active_cap} slots are free, {more} more are needed, and "
            "queue_mode is reject",
        )
    if load.waiting + more > knobs.queue_max:
        return Rejected(
            "queue_full",
            _retry_after(load.waiting + more - knobs.queue_max, load),
            f"{load.waiting} requests wait already (queue_max={knobs.queue_max})",
        )
    return None


def _objective(request: Request, load: AdmissionState, knobs: Knobs, now: float) -> Rejected | None:
    """Reject now what would only be served after its TTFT objective, if that is wanted."""
    if knobs.admission_slo == "off":
        return None
    predicted = predicted_ttft_s(load, knobs)
    if predicted is not None:
        predicted += now - request.arrival + (load.margin_s if load.must_wait(knobs) else 0.0)
    slo_s = (knobs.ttft_slo_ms if request.ttft_slo_ms is None else request.ttft_slo_ms) / 1e3
    if predicted is None or predicted <= slo_s:
        return None
    rate = "" if load.free_per_s is None else f", {load.free_per_s:.3g} slots come free a second"
    return Rejected(
        "slo",
        predicted - slo_s,
        f"the first token would come after {predicted:.2f} s, and {slo_s:g} s are allowed: "
        f"{load.ahead} go before{rate} (admission_slo=refuse)",
    )


def predicted_ttft_s(load: AdmissionState, knobs: Knobs) -> float | None:
    """The predicted TTFT; None while no slot has come free yet and one is needed."""
    slots = load.slots_needed(knobs)
    if slots == 0:
        return load.first_token_s
    if not load.free_per_s:
        return None
    return slots / load.free_per_s + load.first_token_s


def _retry_after(slots: int, load: AdmissionState) -> float:
    """Seconds until so many slots should have come free at the measured rate."""
    if not load.free_per_s:
        return UNKNOWN_RATE_RETRY_S
    return slots / load.free_per_s
