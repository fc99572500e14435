"""A step as the engine process notes it, on its way to the kernel.

It travels inside the statistics that vLLM sends with each step's outputs: same message, same
order, nothing polled and nothing to lose, and no socket, thread or wake-up of its own.
"""

from __future__ import annotations

from typing import Any

import msgspec

from llmserve.core.types import StepRecord, StepRow, WaitReason

KEY = "llmserve"
"""Beside a KV connector's own figures in `SchedulerStats.kv_connector_stats`, a free-form dict."""

ID_TAIL = 9
"""vLLM appends "-" and 8 random characters to a request's id."""


class StepNote(msgspec.Struct, array_like=True, gc=False):
    index: int
    start_s: float
    max_num_seqs: int
    max_num_batched_tokens: int
    ids: list[str]
    tokens: list[int]
    """Per request in `ids`; negative for a prefill chunk."""
    preempted: list[str]
    wait_reasons: list[tuple[str, WaitReason]]
    satisfied: list[str]
    end_s: float = 0.0


def take_note(stats: Any) -> StepNote | None:
    """The note in a SchedulerStats, taken out so that vLLM's own readers do not trip over it."""
    carried = stats.kv_connector_stats
    if not carried or KEY not in carried:
        return None
    note = msgspec.convert(carried.pop(KEY), StepNote)
    if not carried:
        stats.kv_connector_stats = None
    return note


def to_record(note: StepNote, stats: Any, kv_capacity_tokens: int) -> StepRecord:
    """`stats` is the vLLM SchedulerStats that brought the note."""
    speculation = stats.spec_decoding_stats
    return StepRecord(
        index=note.index,
        start_s=note.start_s,
        duration_s=note.end_s - note.start_s,
        rows=tuple(
            StepRow(request_id, "prefill" if tokens < 0 else "decode", abs(tokens))
            for request_id, tokens in zip(note.ids, note.tokens, strict=True)
        ),
        running=stats.num_running_reqs,
        waiting=stats.num_waiting_reqs + stats.num_skipped_waiting_reqs,
        kv_used_tokens=round(stats.kv_cache_usage * kv_capacity_tokens),
        kv_capacity_tokens=kv_capacity_tokens,
        max_num_seqs=note.max_num_seqs,
        max_num_batched_tokens=note.max_num_batched_tokens,
        preempted=tuple(note.preempted),
        wait_reasons=tuple((request_id, reason) for request_id, reason in note.wait_reasons),
        satisfied=tuple(note.satisfied),
        cached_tokens=stats.prefix_cache_stats.hits + stats.prefix_cache_stats.preempted_hits,
        draft_tokens=0 if speculation is None else speculation.num_draft_tokens,
        accepted_tokens=0 if speculation is None else speculation.num_accepted_tokens,
    )
