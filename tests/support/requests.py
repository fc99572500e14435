"""Requests with only what a test cares about."""

from __future__ import annotations

from llmserve.core.types import Request, SamplingParams


def request(
    id: str,
    arrival: float = 0.0,
    *,
    priority: int = 0,
    tenant: str = "default",
    prompt_tokens: int = 4,
    max_tokens: int = 8,
    ttft_slo_ms: float | None = None,
) -> Request:
    return Request(
        id=id,
        prompt_ids=tuple(range(prompt_tokens)),
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0),
        arrival=arrival,
        priority=priority,
        tenant=tenant,
        ttft_slo_ms=ttft_slo_ms,
    )
