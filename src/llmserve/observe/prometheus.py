"""The session's figures as Prometheus text.

Names, labels and buckets follow vLLM's with `llmserve_` for `vllm:`, so that its dashboards port
by prefix. Each exporter has a registry of its own: two sessions in one process do not clash.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
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
from llmserve.observe.histogram import (
    ITERATION_TOKEN_BUCKETS,
    LENGTH_BUCKETS,
    REQUEST_TIME_BUCKETS,
    TOKEN_TIME_BUCKETS,
    TTFT_BUCKETS,
    Histogram,
)
from llmserve.observe.request_timeline import RequestTimelines

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

OTHER = "other"
MAX_PRIORITIES = 16

_LABELS = ("model_name", "engine")
_HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "time_to_first_token_seconds": ("Arrival to first token, queue included.", TTFT_BUCKETS),
    "inter_token_latency_seconds": ("Gaps between a request's deliveries.", TOKEN_TIME_BUCKETS),
    "request_time_per_output_token_seconds": (
        "Per request: seconds per token after the first.", TOKEN_TIME_BUCKETS),
    "e2e_request_latency_seconds": ("Arrival to end.", REQUEST_TIME_BUCKETS),
    "request_queue_time_seconds": ("Arrival to dispatch.", REQUEST_TIME_BUCKETS),
    "request_prefill_time_seconds": ("Dispatch to first token.", REQUEST_TIME_BUCKETS),
    "request_decode_time_seconds": ("First token to end.", REQUEST_TIME_BUCKETS),
    "request_inference_time_seconds": ("Dispatch to end.", REQUEST_TIME_BUCKETS),
    "request_prompt_tokens": ("Prompt tokens per request.", LENGTH_BUCKETS),
    "request_generation_tokens": ("Generated tokens per request.", LENGTH_BUCKETS),
    "request_params_max_tokens": ("max_tokens per request.", LENGTH_BUCKETS),
    "iteration_tokens_total": ("Tokens computed per engine step.", ITERATION_TOKEN_BUCKETS),
}
_COUNTERS = {
    "prompt_tokens": "Prompt tokens, counted when the first token comes.",
    "generation_tokens": "Generated tokens.",
    "num_preemptions": "Requests put back to recompute their KV.",
    "spec_decode_num_draft_tokens": "Tokens that speculation proposed.",
    "spec_decode_num_accepted_tokens": "Those of them that stood.",
    "prefix_cache_queries": "Prompt tokens looked up in the prefix cache.",
    "prefix_cache_hits": "Prompt tokens found in the prefix cache.",
}


class PrometheusExporter:
    """Attach to an EventBus; `render` from any thread.

    `model_name` may be set once the engine has told it. Label values are bounded: tenants beyond
    the first `max_tenants` and priorities beyond the first 16 are counted as "other".
    """

    def __init__(self, model_name: str = "", max_tenants: int = 50) -> None:
        self.model_name = model_name
        self._lock = threading.Lock()
        self._registry: CollectorRegistry | None = None
        self._journeys = RequestTimelines()
        self._histograms = {name: Histogram(spec[1]) for name, spec in _HISTOGRAMS.items()}
        self._gaps = self._histograms["inter_token_latency_seconds"]
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._success: Counter[str] = Counter()
        self._refused: Counter[tuple[str, str, str]] = Counter()
        self._tenants = _Values(max_tenants)
        self._priorities = _Values(MAX_PRIORITIES)
        self._knob_changes: Counter[str] = Counter()
        self._cache: Counter[str] = Counter()
        self._waits: dict[tuple[str, str], list[float]] = {}  # count and sum
        self._fairness: FairnessSampled | None = None
        self._devices: dict[tuple[str, str], DeviceSampled] = {}
        self._record: StepRecord | None = None

    def __call__(self, event: Event) -> None:
        with self._lock:
            match event:
                case TokensEmitted():
                    self._counts["generation_tokens"] += event.n
                    if (gap := self._journeys.emit(event)) is not None:
                        self._gaps.observe(gap)
                case StepRecorded():
                    self._record = event.record
                    self._counts["num_preemptions"] += len(event.record.preempted)
                    self._counts["spec_decode_num_draft_tokens"] += event.record.draft_tokens
                    accepted = event.record.accepted_tokens
                    self._counts["spec_decode_num_accepted_tokens"] += accepted
                    tokens = event.record.computed_tokens
                    self._histograms["iteration_tokens_total"].observe(tokens)
                case Submitted():
                    self._journeys.submit(event)
                case Dispatched():
                    self._fold_dispatch(event)
                case FirstToken():
                    self._fold_first(event)
                case Finished():
                    self._fold_end(event)
                case Rejection():
                    self._journeys.end(event.request_id)
                    priority = self._priorities.bounded(str(event.priority))
                    tenant = self._tenants.bounded(event.tenant)
                    self._refused[event.reason, priority, tenant] += 1
                case DeviceSampled():
                    self._devices[event.kind, event.name] = event
                case KnobsChanged():
                    self._knob_changes.update(event.changed.keys())
                case FairnessSampled():
                    self._fairness = event
                case CacheLooked():
                    self._cache["hit" if event.hit else "miss"] += 1
                case WaitReasonChanged() | KnobsSatisfied():
                    pass
                case _:
                    assert_never(event)

    def _fold_dispatch(self, event: Dispatched) -> None:
        if (journey := self._journeys.dispatch(event)) is not None:
            wait = self._waits.setdefault(
                (
                    self._priorities.bounded(str(journey.priority)),
                    self._tenants.bounded(journey.tenant),
                ),
                [0, 0.0],
            )
            wait[0] += 1
            wait[1] += event.t - journey.submitted

    def _fold_first(self, event: FirstToken) -> None:
        if (journey := self._journeys.first_token(event)) is not None:
            ttft = event.t - journey.submitted
            self._histograms["time_to_first_token_seconds"].observe(ttft)
            self._counts["prompt_tokens"] += journey.prompt_tokens
            self._counts["prefix_cache_queries"] += journey.prompt_tokens
            self._counts["prefix_cache_hits"] += event.cached_tokens

    def _fold_end(self, event: Finished) -> None:
        self._success[event.reason] += 1
        if (journey := self._journeys.end(event.request_id)) is None:
            return
        sent, first, end = journey.dispatched, journey.first, event.t
        times = {
            "e2e_request_latency_seconds": end - journey.submitted,
            "request_queue_time_seconds": journey.queue_s,
            "request_prefill_time_seconds": _between(sent, first),
            "request_decode_time_seconds": _between(first, end),
            "request_inference_time_seconds": _between(sent, end),
            "request_time_per_output_token_seconds": journey.tpot_s(end, event.completion_tokens),
            "request_prompt_tokens": event.prompt_tokens,
            "request_generation_tokens": event.completion_tokens,
            "request_params_max_tokens": journey.max_tokens,
        }
        for name, value in times.items():
            if value is not None:
                self._histograms[name].observe(value)

    @property
    def registry(self) -> CollectorRegistry:
        """For tools that want one; made on first use."""
        from prometheus_client import CollectorRegistry

        if self._registry is None:
            self._registry = CollectorRegistry(auto_describe=False)
            self._registry.register(self)
        return self._registry

    @property
    def content_type(self) -> str:
        from prometheus_client import CONTENT_TYPE_LATEST

        return CONTENT_TYPE_LATEST

    def render(self) -> bytes:
        """The text that `GET /metrics` answers with, of type `content_type`."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """What a prometheus_client registry asks of its collectors."""
        with self._lock:  # a list, so that nothing is left to do when the lock is let go
            metrics = [*self._gauges(), *self._counters(), *self._histogram_metrics()]
        return iter(metrics)

    def _gauges(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        values: dict[str, tuple[str, float]] = {
            "num_requests_running": ("Requests in the engine.", self._journeys.running),
            "num_requests_waiting": ("Requests waiting for a place.", self._journeys.waiting),
        }
        if (record := self._record) is not None and record.kv_capacity_tokens:
            use = self._journeys.kv_in_use(record) / record.kv_capacity_tokens
            values["kv_cache_usage_perc"] = ("KV room in use; 1 means all of it.", use)
        yield from self._plain(values)
        if self._fairness is not None:
            values = {
                "fairness_gap_tokens": (
                    "Largest difference of service between two waiting tenants under fair_share.",
                    self._fairness.gap,
                ),
                "fairness_bound_tokens": (
                    "What fair_share promises that the gap never exceeds.", self._fairness.bound,
                ),
            }
            yield from self._plain(values)
        labels = (*_LABELS, "kind", "name")
        memory = GaugeMetricFamily(
            "llmserve_device_memory_used_bytes", "Memory in use, by all processes.", labels=labels
        )
        for (kind, name), sample in self._devices.items():
            memory.add_metric((*self._base(), kind, name), sample.used_bytes)
        yield memory

    def _plain(self, values: Mapping[str, tuple[str, float]]) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        for name, (help_text, value) in values.items():
            gauge = GaugeMetricFamily(f"llmserve_{name}", help_text, labels=_LABELS)
            gauge.add_metric(self._base(), value)
            yield gauge

    def _queue_waits(self) -> Metric:
        from prometheus_client.core import SummaryMetricFamily

        waits = SummaryMetricFamily(
            "llmserve_queue_wait_seconds",
            "Arrival to dispatch, by class and tenant.",
            labels=(*_LABELS, "priority", "tenant"),
        )
        for labels, (count, total) in self._waits.items():
            waits.add_metric((*self._base(), *labels), int(count), total)
        return waits

    def _counters(self) -> Iterator[Metric]:
        for name, count in self._counts.items():
            yield self._counter(name, _COUNTERS[name], (), [((), count)])
        success = [((reason,), count) for reason, count in self._success.items()]
        yield self._counter(
            "request_success", "Requests that left the engine.", ("finished_reason",), success
        )
        yield self._counter(
            "request_refused",
            "Requests refused.",
            ("reason", "priority", "tenant"),
            self._refused.items(),
        )
        looked = [((result,), count) for result, count in self._cache.items()]
        yield self._counter("response_cache", "Look-ups of replies.", ("result",), looked)
        yield self._queue_waits()
        changes = [((name,), count) for name, count in self._knob_changes.items()]
        yield self._counter("knob_changes", "Changes of a knob.", ("name",), changes)

    def _counter(
        self,
        name: str,
        help_text: str,
        labels: tuple[str, ...],
        values: Iterable[tuple[tuple[str, ...], int]],
    ) -> Metric:
        from prometheus_client.core import CounterMetricFamily

        metric = CounterMetricFamily(f"llmserve_{name}", help_text, labels=(*_LABELS, *labels))
        for key, count in values:
            metric.add_metric((*self._base(), *key), count)
        return metric

    def _histogram_metrics(self) -> Iterator[Metric]:
        from prometheus_client.core import HistogramMetricFamily

        for name, histogram in self._histograms.items():
            help_text = _HISTOGRAMS[name][0]
            metric = HistogramMetricFamily(f"llmserve_{name}", help_text, labels=_LABELS)
            buckets, total = histogram.read()
            metric.add_metric(self._base(), buckets, total)
            yield metric

    def _base(self) -> tuple[str, str]:
        return (self.model_name, "0")  # vLLM numbers its engines; there is one here


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
