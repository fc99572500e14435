"""Hand-made events: the shortest way to write down what happened."""

from __future__ import annotations

from llmserve.core.events import (
    Dispatched,
    Event,
    Finished,
    FirstToken,
    Rejection,
    RejectReason,
    StepRecorded,
    Submitted,
    TokensEmitted,
)
from llmserve.core.types import FinishReason, StepRecord, StepRow


def submitted(t: float, id: str = "a", *, prompt: int = 10, tenant: str = "default") -> Event:
    return Submitted(
        t=t, request_id=id, tenant=tenant, priority=0, prompt_tokens=prompt, max_tokens=99
    )


def dispatched(t: float, id: str = "a") -> Event:
    return Dispatched(t=t, request_id=id)


def first(t: float, id: str = "a", cached: int = 0) -> Event:
    return FirstToken(t=t, request_id=id, cached_tokens=cached)


def tokens(t: float, id: str = "a", n: int = 1) -> Event:
    return TokensEmitted(t=t, counts={id: n})


def finished(
    t: float, id: str = "a", *, tokens: int = 1, reason: FinishReason = "stop", prompt: int = 10
) -> Event:
    return Finished(
        t=t, request_id=id, reason=reason, prompt_tokens=prompt, completion_tokens=tokens
    )


def refused(
    t: float,
    id: str = "a",
    reason: RejectReason = "queue_full",
    *,
    tenant: str = "default",
    priority: int = 0,
) -> Event:
    return Rejection(t=t, request_id=id, tenant=tenant, priority=priority, reason=reason)


def step(
    t: float,
    index: int = 0,
    *,
    took: float = 0.5,
    prefill: int = 0,
    decode: int = 1,
    preempted: tuple[str, ...] = (),
    kv: int = 40,
) -> StepRecorded:
    rows = [StepRow(f"d{i}", "decode", 1) for i in range(decode)]
    if prefill:
        rows.append(StepRow("p", "prefill", prefill))
    record = StepRecord(
        index=index,
        start_s=t - took,
        duration_s=took,
        rows=tuple(rows),
        running=len(rows),
        waiting=0,
        kv_used_tokens=kv,
        kv_capacity_tokens=100,
        max_num_seqs=4,
        max_num_batched_tokens=20,
        preempted=preempted,
    )
    return StepRecorded(t=t, record=record)


def one_request(t: float = 0.0, id: str = "a") -> list[Event]:
    """Queue 1 s, first token after 3 s, gaps of 1 and 2 s (two tokens in the last), E2E 6 s."""
    return [
        submitted(t, id),
        dispatched(t + 1, id),
        first(t + 3, id, cached=4),
        tokens(t + 3, id),
        tokens(t + 4, id),
        tokens(t + 6, id, n=2),
        finished(t + 6, id, tokens=4),
    ]
