"""The session's Prometheus metrics: prometheus_client's own, but for the two that count tokens.

Names, labels and buckets follow vLLM's with `llmserve_` for `vllm:`, so that its dashboards port
by prefix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Summary
from prometheus_client import Histogram as ClientHistogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from llmserve.observe.histogram import (
    ITERATION_TOKEN_BUCKETS,
    LENGTH_BUCKETS,
    REQUEST_TIME_BUCKETS,
    TOKEN_TIME_BUCKETS,
    TTFT_BUCKETS,
    Histogram,
)

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

PREFIX: Final = "llmserve_"
OF_A_REQUEST: Final[dict[str, tuple[str, tuple[float, ...]]]] = {
    "time_to_first_token_seconds": ("Arrival to first token, queue included.", TTFT_BUCKETS),
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
_COUNTERS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "prompt_tokens": ("Prompt tokens, counted when the first token comes.", ()),
    "num_preemptions": ("Requests put back to recompute their KV.", ()),
    "spec_decode_num_draft_tokens": ("Tokens that speculation proposed.", ()),
    "spec_decode_num_accepted_tokens": ("Those of them that stood.", ()),
    "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", ()),
    "prefix_cache_hits": ("Prompt tokens found in the prefix cache.", ()),
    "request_success": ("Requests that left the engine.", ("finished_reason",)),
    "request_refused": ("Requests refused.", ("reason", "priority", "tenant")),
    "response_cache": ("Look-ups of replies.", ("result",)),
    "knob_changes": ("Changes of a knob.", ("name",)),
}
_GAUGES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "num_requests_running": ("Requests in the engine.", ()),
    "num_requests_waiting": ("Requests waiting for a slot.", ()),
    "kv_cache_usage_perc": ("KV memory in use; 1 means all of it.", ()),
    "fairness_gap_tokens": (
        "Largest difference of service between two waiting tenants under fair_share.", ()),
    "fairness_bound_tokens": ("What fair_share promises that the gap never exceeds.", ()),
    "device_memory_used_bytes": ("Memory in use, by all processes.", ("kind", "name")),
}


class TokenMetrics:
    """Counted once per token, so in plain numbers: the client's own `inc` and `observe` each take
    a lock and cost 0.8 and 1.3 µs; these cost 0.05 and 0.4."""

    def __init__(self) -> None:
        self.generated = 0
        self.gaps = Histogram(TOKEN_TIME_BUCKETS)

    def collect(self) -> Iterator[Metric]:
        counter = CounterMetricFamily(f"{PREFIX}generation_tokens", "Generated tokens.", labels=())
        counter.add_metric((), self.generated)
        yield counter
        name = f"{PREFIX}inter_token_latency_seconds"
        gaps = HistogramMetricFamily(name, "Gaps between a request's deliveries.", labels=())
        gaps.add_metric((), *self.gaps.read())
        yield gaps


class Metrics:
    """All metrics of one session in a registry of its own: two sessions in a process do not clash.

    `model_name` stands on every sample and may be set late, once the engine has reported it.
    """

    def __init__(self, model_name: str = "") -> None:
        self.model_name = model_name
        self.registry = CollectorRegistry(auto_describe=False)
        self._inner = CollectorRegistry(auto_describe=False)
        self._gauges: dict[str, Gauge] = {}
        self.tokens = TokenMetrics()
        self._inner.register(self.tokens)
        self.counters = {
            name: Counter(PREFIX + name, words, labels, registry=self._inner)
            for name, (words, labels) in _COUNTERS.items()
        }
        self.histograms = {
            name: ClientHistogram(PREFIX + name, words, buckets=buckets, registry=self._inner)
            for name, (words, buckets) in OF_A_REQUEST.items()
        }
        self.queue_wait = Summary(
            f"{PREFIX}queue_wait_seconds", "Arrival to dispatch, by class and tenant.",
            ("priority", "tenant"), registry=self._inner,
        )  # fmt: skip
        self.registry.register(self)

    def gauge(self, name: str) -> Gauge:
        """Registered when it is first asked for: what never was measured is not on the page."""
        if name not in self._gauges:
            words, labels = _GAUGES[name]
            self._gauges[name] = Gauge(PREFIX + name, words, labels, registry=self._inner)
        return self._gauges[name]

    def collect(self) -> Iterator[Metric]:
        """All of them with the labels that vLLM's have, without the times of their making."""
        base = {"model_name": self.model_name, "engine": "0"}  # vLLM numbers its engines
        for metric in self._inner.collect():
            metric.samples = [
                sample._replace(labels={**base, **sample.labels})
                for sample in metric.samples
                if not sample.name.endswith("_created")
            ]
            yield metric
