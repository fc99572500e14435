"""The session's figures as Prometheus text: a fold over its events into `metrics.py`."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, assert_never

from llmserve.core.events import (
    CacheLooked,
    DeviceSampled,
    Dispatched,
    Event,
    FairnessSampled,
    Finished,
    FirstToken,
    KnobsChanged,
    KnobsSatisfied,
    Rejection,
    StepRecorded,
    Submitted,
    TokensEmitted,
    WaitReasonChanged,
)
from llmserve.core.types import StepRecord
from llmserve.observe.metrics import Metrics
from llmserve.observe.request_timeline import RequestTimelines

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

OTHER = "other"
MAX_PRIORITIES = 16


class PrometheusExporter:
    """Attach to an EventBus; `render` from any thread.

    `model_name` may be set once the engine reports it. Label values are bounded: tenants beyond
    the first `max_tenants` and priorities beyond the first 16 are counted as "other".
    """

    def __init__(self, model_name: str = "", max_tenants: int = 50) -> None:
        self._lock = threading.Lock()
        self._timelines = RequestTimelines()
        self._metrics = Metrics(model_name)
        self._tokens = self._metrics.tokens
        self._tenants = _Values(max_tenants)
        self._priorities = _Values(MAX_PRIORITIES)
        self._record: StepRecord | None = None
        running, waiting = map(
            self._metrics.gauge, ("num_requests_running", "num_requests_waiting")
        )
        running.set_function(lambda: self._timelines.running)
        waiting.set_function(lambda: self._timelines.waiting)

    @property
    def model_name(self) -> str:
        return self._metrics.model_name

    @model_name.setter
    def model_name(self, name: str) -> None:
        self._metrics.model_name = name

    def __call__(self, event: Event) -> None:
        counters = self._metrics.counters
        with self._lock:
            match event:
                case TokensEmitted():
                    for n, gap in self._timelines.emit(event):
                        self._tokens.generated += n
                        if gap is not None:
                            self._tokens.gaps.observe(gap)
                case StepRecorded():
                    self._fold_step(event.record)
                case Submitted():
                    self._timelines.submit(event)
                case Dispatched():
                    self._fold_dispatch(event)
                case FirstToken():
                    self._fold_first(event)
                case Finished():
                    self._fold_end(event)
                case Rejection():
                    self._timelines.end(event.request_id)
                    labels = self._class_of(event.priority, event.tenant)
                    counters["request_refused"].labels(event.reason, *labels).inc()
                case DeviceSampled():
                    memory = self._metrics.gauge("device_memory_used_bytes")
                    memory.labels(event.kind, event.name).set(event.used_bytes)
                case KnobsChanged():
                    for name in event.changed:
                        counters["knob_changes"].labels(name).inc()
                case FairnessSampled():
                    self._metrics.gauge("fairness_gap_tokens").set(event.gap)
                    self._metrics.gauge("fairness_bound_tokens").set(event.bound)
                case CacheLooked():
                    counters["response_cache"].labels("hit" if event.hit else "miss").inc()
                case WaitReasonChanged() | KnobsSatisfied():
                    pass
                case _:
                    assert_never(event)

    def _class_of(self, priority: int, tenant: str) -> tuple[str, str]:
        return self._priorities.bounded(str(priority)), self._tenants.bounded(tenant)

    def _fold_step(self, record: StepRecord) -> None:
        counters = self._metrics.counters
        counters["num_preemptions"].inc(len(record.preempted))
        counters["spec_decode_num_draft_tokens"].inc(record.draft_tokens)
        counters["spec_decode_num_accepted_tokens"].inc(record.accepted_tokens)
        self._metrics.histograms["iteration_tokens_total"].observe(record.computed_tokens)
        if record.kv_capacity_tokens and self._record is None:
            self._metrics.gauge("kv_cache_usage_perc").set_function(self._kv_use)
        self._record = record

    def _kv_use(self) -> float:
        record = self._record
        if record is None or not record.kv_capacity_tokens:
            return 0.0
        return self._timelines.kv_in_use(record) / record.kv_capacity_tokens

    def _fold_dispatch(self, event: Dispatched) -> None:
        if (timeline := self._timelines.dispatch(event)) is not None:
            labels = self._class_of(timeline.priority, timeline.tenant)
            self._metrics.queue_wait.labels(*labels).observe(event.t - timeline.submitted)

    def _fold_first(self, event: FirstToken) -> None:
        if (timeline := self._timelines.first_token(event)) is not None:
            ttft = event.t - timeline.submitted
            self._metrics.histograms["time_to_first_token_seconds"].observe(ttft)
            counters = self._metrics.counters
            counters["prompt_tokens"].inc(timeline.prompt_tokens)
            counters["prefix_cache_queries"].inc(timeline.prompt_tokens)
            counters["prefix_cache_hits"].inc(event.cached_tokens)

    def _fold_end(self, event: Finished) -> None:
        self._metrics.counters["request_success"].labels(event.reason).inc()
        if (timeline := self._timelines.end(event.request_id)) is None:
            return
        sent, first, end = timeline.dispatched, timeline.first, event.t
        measured = {
            "e2e_request_latency_seconds": end - timeline.submitted,
            "request_queue_time_seconds": timeline.queue_s,
            "request_prefill_time_seconds": _between(sent, first),
            "request_decode_time_seconds": _between(first, end),
            "request_inference_time_seconds": _between(sent, end),
            "request_time_per_output_token_seconds": timeline.tpot_s(end, event.completion_tokens),
            "request_prompt_tokens": event.prompt_tokens,
            "request_generation_tokens": event.completion_tokens,
            "request_params_max_tokens": timeline.max_tokens,
        }
        for name, value in measured.items():
            if value is not None:
                self._metrics.histograms[name].observe(value)

    @property
    def registry(self) -> CollectorRegistry:
        """The registry, for tools that want one."""
        return self._metrics.registry

    @property
    def content_type(self) -> str:
        from prometheus_client import CONTENT_TYPE_LATEST

        return CONTENT_TYPE_LATEST

    def render(self) -> bytes:
        """The text that `GET /metrics` answers with, of type `content_type`."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


class _Values:
    """The first `limit` values of a label as they are, the others as "other"."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def bounded(self, value: str) -> str:
        if value in self._seen:
            return value
        if len(self._seen) < self._limit:
            self._seen.add(value)
            return value
        return OTHER
