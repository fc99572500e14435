"""What vLLM's engine process imports: its scheduler, with live caps and a note of every step.

Rules that keep the engine alive:
- `max_num_running_reqs` is never touched: buffers were laid out for it, and vLLM asserts it. Caps
  go to `max_num_active_reqs` (admission) and `max_num_scheduled_tokens`, and only downwards from
  what the engine started with; the caller has clamped them.
- Everything here runs in the engine's one loop: calls from the kernel come between two steps.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, cast

import torch
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.request import RequestStatus

from llmserve.core.knobs import Knobs
from llmserve.core.types import WaitReason
from llmserve.engines.batching.cap_watch import CapWatch
from llmserve.engines.vllm.step_note import ID_TAIL, KEY, StepNote


class LiveKnobs:
    """Beside vLLM's scheduler, before it in the method order. Typed Any: vLLM's is not public."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._me = cast("Any", self)
        self._steps = 0
        self._notes: dict[int, StepNote] = {}  # planned steps whose output has not come, by id()
        self._last_end = 0.0
        self._unexplained: list[Any] = []  # joined the queue since the last note
        self.noting = True
        """Off only to measure what notes cost; the steps go on being counted."""
        self._caps = CapWatch()
        self._knobs = Knobs(
            max_num_seqs=self._me.max_num_active_reqs,
            max_num_batched_tokens=self._me.max_num_scheduled_tokens,
        )

    @property
    def next_step(self) -> int:
        return self._steps

    def adopt(self, changes: dict[str, Any]) -> None:
        """Adopt knobs from the next step on. Running requests above a lowered cap finish first."""
        self._knobs = replace(self._knobs, **changes)
        self._me.max_num_active_reqs = self._knobs.max_num_seqs
        self._me.max_num_scheduled_tokens = self._knobs.max_num_batched_tokens
        threshold = self._knobs.long_prefill_token_threshold
        self._me.scheduler_config.long_prefill_token_threshold = threshold

    def evict(self) -> list[str]:
        """Preempt what runs above the cap, last admitted (or least urgent) first. They keep
        their tokens, lose their KV, and go to the front of the queue."""
        me, now, evicted = self._me, time.monotonic(), []
        while len(me.running) > me.max_num_active_reqs:
            victim = me.running[-1]
            if me.policy == SchedulingPolicy.PRIORITY:
                victim = max(me.running, key=lambda one: (one.priority, one.arrival_time))
            me.running.remove(victim)
            me._preempt_request(victim, now)
            # else the model runner would take it for one that ran in the step before
            me.prev_step_scheduled_req_ids.discard(victim.request_id)
            evicted.append(victim.request_id[:-ID_TAIL])
        return evicted

    def add_request(self, request: Any) -> None:
        super().add_request(request)  # type: ignore[misc]  # vLLM's scheduler comes next
        self._unexplained.append(request)

    def schedule(self, throttle_prefills: bool = False) -> Any:
        if not self.noting:
            self._steps += 1
            return super().schedule(throttle_prefills)  # type: ignore[misc]  # as above
        started = time.monotonic()
        prefilling = {one.request_id for one in self._me.running if one.is_prefill_chunk}
        output = super().schedule(throttle_prefills)  # type: ignore[misc]  # as above
        self._notes[id(output)] = self._note(output, prefilling, started)
        self._steps += 1
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        outputs = super().update_from_output(  # type: ignore[misc]  # as above
            scheduler_output, model_runner_output
        )
        note = self._notes.pop(id(scheduler_output), None)
        if note is None:
            return outputs
        # with steps in flight together (async scheduling) each begins where the last one ended
        note.start_s = max(note.start_s, self._last_end)
        note.end_s = self._last_end = time.monotonic()
        for part in outputs.values():
            if (stats := part.scheduler_stats) is not None:
                stats.kv_connector_stats = {**(stats.kv_connector_stats or {}), KEY: note}
        return outputs

    def _note(self, output: Any, prefilling: set[str], started: float) -> StepNote:
        admitted = {one.req_id for one in output.scheduled_new_reqs}
        admitted |= output.scheduled_cached_reqs.resumed_req_ids
        prefilling |= admitted
        for request_id in admitted:
            self._me.requests[request_id].llmserve_wait_reason = None
        scheduled: dict[str, int] = output.num_scheduled_tokens
        return StepNote(
            index=self._steps,
            start_s=started,
            max_num_seqs=self._knobs.max_num_seqs,
            max_num_batched_tokens=self._knobs.max_num_batched_tokens,
            ids=[request_id[:-ID_TAIL] for request_id in scheduled],
            tokens=[-n if one in prefilling else n for one, n in scheduled.items()],
            preempted=sorted(one[:-ID_TAIL] for one in output.preempted_req_ids or ()),
            wait_reasons=self._wait_reasons(output),
            satisfied=self._caps.met(self._knobs, len(self._me.running)),
        )

    def _wait_reasons(self, output: Any) -> list[tuple[str, WaitReason]]:
        """Changed reasons: of requests new in the queue, and of its head, which keeps all back.

        Those behind keep the reason last reported until they are the head, so that a step costs no
        more for a long queue.
        """
        me = self._me
        if me.pause_state != PauseState.UNPAUSED:
            return []
        joined, self._unexplained = self._unexplained, []
        queue = me.kv_holding_waiting or me.waiting
        if not queue:
            return []
        joined += [me.requests[one] for one in output.preempted_req_ids or () if one in me.requests]
        reason, changed = self._reason(output), []
        for request in (*joined, queue.peek_request()):
            waits = request.status != RequestStatus.RUNNING and request.request_id in me.requests
            if waits and getattr(request, "llmserve_wait_reason", None) != reason:
                request.llmserve_wait_reason = reason
                changed.append((request.request_id[:-ID_TAIL], reason))
        return changed

    def _reason(self, output: Any) -> WaitReason:
        me = self._me
        if len(me.running) + me.num_waiting_for_streaming_input >= me.max_num_active_reqs:
            return "cap"
        if output.total_num_scheduled_tokens >= me.max_num_scheduled_tokens:
            return "token_budget"
        return "kv"


class LiveScheduler(LiveKnobs, Scheduler):  # type: ignore[misc]  # vllm is not there for the checker
    """For synchronous stepping, as on a CPU."""


class LiveAsyncScheduler(LiveKnobs, AsyncScheduler):  # type: ignore[misc]  # as above
    """For asynchronous scheduling, vLLM's default on a GPU."""


def _describe(core: Any) -> dict[str, int]:
    """fewest_tokens: with fewer in a step, or in a chunk, a request waits for ever, or vLLM asserts
    that it does not."""
    scheduler = core.scheduler
    chunked = scheduler.scheduler_config.enable_chunked_prefill
    return {
        "max_num_seqs": scheduler.max_num_running_reqs,
        "max_num_batched_tokens": scheduler.max_num_scheduled_tokens,
        "fewest_tokens": 1 + scheduler.num_spec_tokens if chunked else scheduler.max_model_len,
    }


def _adopt(core: Any, changes: dict[str, int]) -> int:
    core.scheduler.adopt(changes)
    step: int = core.scheduler.next_step
    return step


def _evict(core: Any) -> list[str]:
    evicted: list[str] = core.scheduler.evict()
    return evicted


def _note(core: Any, on: bool) -> None:
    core.scheduler.noting = on


def _device_bytes(core: Any) -> int:
    return sum(core.model_executor.collective_rpc(_reserved))


def _reserved(worker: Any) -> int:
    """In each worker's process."""
    count = torch.cuda.device_count()
    return sum(torch.cuda.memory_reserved(device) for device in range(count))


# `call_utility_async` reaches methods of the engine core by name, and nothing else.
EngineCore.llmserve_describe = _describe
EngineCore.llmserve_adopt = _adopt
EngineCore.llmserve_evict = _evict
EngineCore.llmserve_note = _note
EngineCore.llmserve_device_bytes = _device_bytes
