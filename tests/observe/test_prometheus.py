"""The Prometheus text, read back by Prometheus' own parser."""

from __future__ import annotations

from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from llmserve.core.events import CacheLooked, DeviceSampled, Event, FairnessSampled, KnobsChanged
from llmserve.observe import PrometheusExporter
from observe.tape import dispatched, finished, first, one_request, refused, step, submitted

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def folded(*events: Event, model_name: str = "m", max_tenants: int = 50) -> PrometheusExporter:
    exporter = PrometheusExporter(model_name, max_tenants)
    for event in events:
        exporter(event)
    return exporter


def parsed(exporter: PrometheusExporter) -> Values:
    """Sample name without its prefix, labels without the two that all have → value."""
    families = text_string_to_metric_families(exporter.render().decode())
    values: Values = {}
    for family in families:
        for sample in family.samples:
            assert (sample.labels.pop("model_name"), sample.labels.pop("engine")) == ("m", "0")
            assert sample.name.startswith("llmserve_")
            key = sample.name.removeprefix("llmserve_"), frozenset(sample.labels.items())
            assert key not in values, f"{key} twice"
            values[key] = sample.value
    return values


def get(values: Values, name: str, /, **labels: str) -> float:
    return values[name, frozenset(labels.items())]


def test_latencies_fall_into_vllms_buckets_with_the_bound_included() -> None:
    values = parsed(folded(*one_request()))
    ttft = "time_to_first_token_seconds"
    assert (get(values, f"{ttft}_count"), get(values, f"{ttft}_sum")) == (1, 3)
    assert get(values, f"{ttft}_bucket", le="2.5") == 0
    assert get(values, f"{ttft}_bucket", le="5.0") == 1
    assert get(values, f"{ttft}_bucket", le="+Inf") == 1
    itl = "inter_token_latency_seconds"
    assert [get(values, f"{itl}_bucket", le=le) for le in ("0.75", "1.0", "2.5")] == [0, 1, 2]


def test_each_phase_of_a_request_has_its_histogram() -> None:
    values = parsed(folded(*one_request()))
    sums = {
        "request_queue_time_seconds": 1,
        "request_prefill_time_seconds": 2,
        "request_decode_time_seconds": 3,
        "request_inference_time_seconds": 5,
        "e2e_request_latency_seconds": 6,
        "request_time_per_output_token_seconds": 1,
        "request_prompt_tokens": 10,
        "request_generation_tokens": 4,
        "request_params_max_tokens": 99,
    }
    assert {name: get(values, f"{name}_sum") for name in sums} == sums


def test_counters_and_gauges_follow_the_events() -> None:
    waiting, running = submitted(20, "w"), [submitted(20, "r"), dispatched(21, "r")]
    values = parsed(folded(*one_request(), waiting, *running, step(9, preempted=("x",), kv=25)))
    expected = {
        "prompt_tokens_total": 10,
        "generation_tokens_total": 4,
        "prefix_cache_queries_total": 10,
        "prefix_cache_hits_total": 4,
        "num_preemptions_total": 1,
        "num_requests_waiting": 1,
        "num_requests_running": 1,
        "kv_cache_usage_perc": 0.25,
        "iteration_tokens_total_count": 1,
    }
    assert {name: get(values, name) for name in expected} == expected
    assert get(values, "request_success_total", finished_reason="stop") == 1


def test_a_request_that_never_reached_the_engine_has_no_engine_times() -> None:
    values = parsed(folded(submitted(0), finished(2, reason="abort", tokens=0)))
    assert get(values, "e2e_request_latency_seconds_count") == 1
    assert get(values, "request_queue_time_seconds_count") == 0
    assert get(values, "request_inference_time_seconds_count") == 0


def test_times_at_zero_on_the_clock_are_times_like_others() -> None:
    values = parsed(folded(submitted(0), dispatched(0), first(0), finished(2, tokens=1)))
    assert get(values, "request_inference_time_seconds_sum") == 2
    assert get(values, "request_prefill_time_seconds_count") == 1


def test_refusals_are_counted_by_reason_priority_and_tenant() -> None:
    values = parsed(
        folded(
            refused(0, "a", tenant="x", priority=2),
            refused(0, "b", tenant="x", priority=2),
            refused(0, "c", "no_place"),
        )
    )
    name = "request_refused_total"
    assert get(values, name, reason="queue_full", priority="2", tenant="x") == 2
    assert get(values, name, reason="no_place", priority="0", tenant="default") == 1


def test_clients_cannot_make_labels_without_end() -> None:
    events = [refused(0, str(i), tenant=f"t{i}", priority=i) for i in range(1000)]
    values = parsed(folded(*events, max_tenants=3))
    rows = {labels for name, labels in values if name == "request_refused_total"}
    assert len(rows) <= 3 + 16 + 1
    assert get(
        values, "request_refused_total", reason="queue_full", priority="other", tenant="other"
    ) == 1000 - 16


def test_knob_changes_and_device_memory_are_told() -> None:
    change = KnobsChanged(
        t=0, changed={"max_num_seqs": (8, 4)}, source="code", step=3, ms=1.0
    )
    sample = DeviceSampled(t=0, kind="host", name="host memory", used_bytes=7, total_bytes=9)
    values = parsed(folded(change, change, sample))
    assert get(values, "knob_changes_total", name="max_num_seqs") == 2
    assert get(values, "device_memory_used_bytes", kind="host", name="host memory") == 7


def test_a_hostile_tenant_name_does_not_break_the_text() -> None:
    tenant = 'x"} 1\nllmserve_fake 2 \\'
    values = parsed(folded(refused(0, tenant=tenant)))
    assert get(
        values, "request_refused_total", reason="queue_full", priority="0", tenant=tenant
    ) == 1


def test_two_sessions_have_registries_of_their_own_and_leave_the_default_one_alone() -> None:
    one, two = folded(*one_request()), folded()
    assert get(parsed(one), "generation_tokens_total") == 4
    assert get(parsed(two), "generation_tokens_total") == 0
    assert one.registry is not two.registry
    assert not [m for m in REGISTRY.collect() if m.name.startswith("llmserve")]


def test_the_content_type_is_prometheus_text() -> None:
    assert folded().content_type.startswith("text/plain")


def test_queue_waits_are_told_by_class_and_tenant() -> None:
    events = [submitted(0, "a", tenant="x"), submitted(0, "b"), submitted(0, "c")]
    values = parsed(folded(*events, dispatched(1, "a"), dispatched(2, "b"), dispatched(5, "c")))
    wait = "queue_wait_seconds"
    assert get(values, f"{wait}_sum", tenant="x", priority="0") == 1
    assert get(values, f"{wait}_count", tenant="default", priority="0") == 2
    assert get(values, f"{wait}_sum", tenant="default", priority="0") == 7


def test_the_gap_between_tenants_and_its_bound_are_gauges() -> None:
    assert not [key for key in parsed(folded()) if "fairness" in key[0]]
    values = parsed(folded(FairnessSampled(t=1, gap=30, bound=400, tenants=2)))
    assert get(values, "fairness_gap_tokens") == 30
    assert get(values, "fairness_bound_tokens") == 400


def test_cache_look_ups_are_counted_by_result() -> None:
    looks = [CacheLooked(t=1, request_id=str(n), tenant="a", hit=n > 0) for n in range(3)]
    values = parsed(folded(*looks))
    assert get(values, "response_cache_total", result="hit") == 2
    assert get(values, "response_cache_total", result="miss") == 1
