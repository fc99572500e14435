"""Traces whose right answer is known, and the whole path on virtual time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.bench.load.workload import Workload
from llmserve.bench.run.driver import Bench, ServiceTarget
from llmserve.core.clock import VirtualClock
from llmserve.core.events import Event, EventBus, KnobsChanged, StepRecorded, WaitReasonChanged
from llmserve.core.knobs import KnobBoard, Knobs
from llmserve.core.types import StepRecord, StepRow, WaitReason
from llmserve.engines.simulator.engine import SimulatorEngine
from llmserve.observe.attributed_waits import ruling_knob
from llmserve.observe.attribution import WhyFold, explain
from llmserve.observe.attribution_report import COLOURS, LABELS, Breakdown, Why, bars
from llmserve.observe.time_by_cause import CAUSES, Cause
from llmserve.serving.publisher import publish_step
from llmserve.serving.service import Service
from observe.tape import dispatched, finished, first, refused, submitted, tokens


def waits_for(t: float, id: str, reason: WaitReason) -> Event:
    return WaitReasonChanged(t=t, request_id=id, reason=reason)


def step(
    index: int,
    start: float,
    took: float,
    *rows: tuple[str, str, int],
    preempted: tuple[str, ...] = (),
    wait_reasons: tuple[tuple[str, WaitReason], ...] = (),
) -> Event:
    record = StepRecord(
        index=index, start_s=start, duration_s=took,
        rows=tuple(StepRow(id, "prefill" if k == "p" else "decode", n) for id, k, n in rows),
        running=len(rows), waiting=0, kv_used_tokens=0, kv_capacity_tokens=100,
        max_num_seqs=4, max_num_batched_tokens=20, preempted=preempted, wait_reasons=wait_reasons,
    )
    return StepRecorded(t=start + took, record=record)


def parts(breakdown: Breakdown | None) -> dict[Cause, float]:
    assert breakdown is not None
    assert sum(part.seconds for part in breakdown.parts) == pytest.approx(breakdown.p95_s)
    return {part.cause: round(part.seconds, 6) for part in breakdown.parts}


def ttft(*events: Event, **knobs: object) -> dict[Cause, float]:
    return parts(explain(events, Knobs().changed(knobs)).ttft)


def test_a_wait_is_put_under_each_reason_for_as_long_as_it_was_the_reason() -> None:
    assert ttft(
        submitted(0), waits_for(0, "a", "cap"), waits_for(3, "a", "policy"),
        waits_for(4, "a", "tenant_limit"), dispatched(6),
        step(0, 6, 1, ("a", "p", 10)), first(7), tokens(7),
    ) == {"cap": 3, "policy": 1, "tenant_limit": 2, "prefill": 1}  # fmt: skip


def test_the_engine_s_reasons_count_from_the_step_that_gave_them() -> None:
    assert ttft(
        submitted(0), dispatched(0),
        step(0, 1, 2, ("b", "d", 1), wait_reasons=(("a", "cap"),)),
        step(1, 3, 2, ("b", "d", 1), wait_reasons=(("a", "kv"),)),
        step(2, 5, 2, ("a", "p", 10)), first(7),
    ) == {"other": 1, "cap": 2, "kv": 2, "prefill": 2}  # fmt: skip


def test_the_budget_of_a_step_and_of_requests_in_flight_are_two_things() -> None:
    front = ttft(submitted(0), waits_for(0, "a", "token_budget"), dispatched(2), first(2))
    engine = ttft(
        submitted(0), dispatched(0), step(0, 0, 2, wait_reasons=(("a", "token_budget"),)),
        step(1, 2, 1, ("a", "p", 9)), first(3),
    )  # fmt: skip
    assert front == {"in_flight": 2}
    assert engine == {"token_budget": 2, "prefill": 1}


def test_others_prompts_in_the_same_step_are_interference_by_their_tokens() -> None:
    assert ttft(
        submitted(0), dispatched(0), step(0, 0, 4, ("a", "p", 10), ("b", "p", 30)), first(4)
    ) == {"interference": 3, "prefill": 1}


def test_a_step_without_a_row_between_two_chunks_is_the_budget_s_doing() -> None:
    assert ttft(
        submitted(0), dispatched(0), step(0, 0, 1, ("a", "p", 10)), step(1, 1, 2, ("b", "d", 1)),
        step(2, 3, 1, ("a", "p", 10)), first(4),
    ) == {"prefill": 2, "token_budget": 2}  # fmt: skip


def test_a_preempted_prompt_s_wait_and_recomputation_are_preemption() -> None:
    assert ttft(
        submitted(0), dispatched(0), step(0, 0, 1, ("a", "p", 10)),
        step(1, 1, 2, ("b", "d", 1), preempted=("a",), wait_reasons=(("a", "kv"),)),
        step(2, 3, 1, ("a", "p", 10)), step(3, 4, 1, ("a", "p", 5)), first(5),
    ) == {"preemption": 3, "prefill": 2}  # fmt: skip


def gaps(*events: Event) -> dict[Cause, float]:
    born = [submitted(0), dispatched(0), first(0), tokens(0)]
    return parts(explain([*born, *events], Knobs()).itl)


def test_a_gap_is_decoding_and_what_a_prompt_in_the_step_added_to_it() -> None:
    decode = [step(i, i, 1, ("a", "d", 1)) for i in range(3)]
    events = [event for i, s in enumerate(decode) for event in (s, tokens(i + 1))]
    mixed = [step(3, 3, 5, ("a", "d", 1), ("b", "p", 99)), tokens(8)]
    late = explain([submitted(0), dispatched(0), first(0), tokens(0), *events, *mixed], Knobs())
    found = parts(late.itl)
    assert found["interference"] / found["decode"] == pytest.approx(4)
    assert late.itl is not None
    assert late.itl.knob == "max_num_batched_tokens"


def test_a_first_mixed_step_is_divided_by_tokens_for_want_of_a_decode_alone() -> None:
    found = gaps(step(0, 0, 4, ("a", "d", 1), ("b", "p", 3)), tokens(4))
    assert found == {"interference": 3, "decode": 1}


def test_a_gap_that_a_preemption_made_is_preemption() -> None:
    found = gaps(
        step(0, 0, 2, ("b", "d", 1), preempted=("a",)), step(1, 2, 3, ("a", "p", 11)), tokens(5)
    )
    assert found == {"preemption": 5}


def test_delivery_is_what_no_step_explains() -> None:
    assert gaps(step(0, 0, 1, ("a", "d", 1)), tokens(9)) == {"other": 8, "decode": 1}


def test_tokens_that_come_together_make_one_gap() -> None:
    why = explain(
        [submitted(0), dispatched(0), first(1), tokens(1), tokens(2), tokens(2, n=3)], Knobs()
    )
    assert why.itl is not None
    assert why.itl.n == 1


@pytest.mark.parametrize(
    ("cause", "knobs", "knob"),
    [
        ("cap", {}, "max_num_seqs"),
        ("cap", {"max_active": 4}, "max_active"),
        ("cap", {"max_active": 64}, "max_num_seqs"),
        ("cap", {"batching": "none"}, "batching"),
        ("policy", {}, "policy"),
        ("in_flight", {"max_tokens_in_flight": 9}, "max_tokens_in_flight"),
        ("token_budget", {}, "max_num_batched_tokens"),
        ("tenant_limit", {"max_active_per_tenant": 1}, "max_active_per_tenant"),
        ("tenant_limit", {"kv_share_per_tenant": 0.5}, "kv_share_per_tenant"),
        ("batch", {"batching": "static"}, "batching"),
        ("interference", {"long_prefill_token_threshold": 9}, "long_prefill_token_threshold"),
        ("preemption", {}, "max_num_seqs"),
        ("kv", {}, None),
        ("prefill", {}, None),
    ],
)
def test_each_part_names_the_knob_that_rules_it(
    cause: Cause, knobs: dict[str, object], knob: str | None
) -> None:
    assert ruling_knob(cause, Knobs().changed(knobs)) == knob


def test_every_cause_has_words_and_a_colour_of_its_own() -> None:
    assert set(LABELS) == set(COLOURS) == set(CAUSES)
    assert len(set(COLOURS.values())) == len(CAUSES)


def waiting_by_cap(n: int, begin: float, wait: float) -> list[Event]:
    events: list[Event] = []
    for i in range(n):
        id, t = f"{begin}-{i}", begin + i
        events += [submitted(t, id), waits_for(t, id, "cap"), dispatched(t + wait, id)]
        events += [first(t + wait, id), tokens(t + wait, id), finished(t + wait, id)]
    return events


def change(t: float) -> KnobsChanged:
    changed = {"max_num_seqs": (32, 8)}
    return KnobsChanged(t=t, changed=changed, source="slider", step=812, ms=0.4)  # type: ignore[arg-type]  # ints are knob values, dict is invariant


def test_the_last_change_of_the_binding_knob_is_told_with_what_was_measured() -> None:
    events = [*waiting_by_cap(10, 0, 0.1), change(10.5), *waiting_by_cap(10, 11, 0.8)]
    why = explain(events, Knobs(max_num_seqs=8))
    assert why.ttft is not None
    assert (why.ttft.knob, why.ttft.value) == ("max_num_seqs", 8)
    effect = why.ttft.effect
    assert effect is not None
    assert list(effect.ttft_p95) == pytest.approx([0.1, 0.8])
    assert "32 → 8 at step 812" in str(why)
    assert "TTFT p95 100 ms → 800 ms" in str(why)
    assert "max_num_seqs = 8 binds" in str(why)


def test_silence_after_a_change_takes_nothing_from_the_tokens_per_second_it_brought() -> None:
    events = [*waiting_by_cap(10, 0, 0.1), change(10.5), *waiting_by_cap(10, 11, 0.8)]
    at_once, later = (explain(events, Knobs(max_num_seqs=8), now=t) for t in (21, 28))
    assert at_once.ttft is not None
    assert later.ttft is not None
    assert at_once.ttft.effect is not None
    assert later.ttft.effect is not None
    assert later.ttft.effect.generated_per_s[1] == at_once.ttft.effect.generated_per_s[1]


def test_a_knob_that_was_turned_far_enough_binds_no_more() -> None:
    calm = [
        event
        for i in range(10)
        for event in (
            submitted(20 + i, f"c{i}"), dispatched(20 + i, f"c{i}"),
            step(i, 20 + i, 0.1, (f"c{i}", "p", 9)), first(20.1 + i, f"c{i}"),
        )
    ]  # fmt: skip
    changed = {"max_num_seqs": (4, 64)}
    raised = KnobsChanged(t=15, changed=changed, source="code", step=9, ms=1)  # type: ignore[arg-type]  # ints are knob values, dict is invariant
    events = [*waiting_by_cap(10, 0, 4), raised, *calm]
    why = explain(events, Knobs(max_num_seqs=64), window_s=60)
    assert why.ttft is not None
    assert (why.ttft.knob, why.ttft.relieved) == ("max_num_seqs", True)
    assert "max_num_seqs = 4 bound until its last change; at 64 it does not." in str(why)
    before = explain(events[: -len(calm)], Knobs(max_num_seqs=64), window_s=60)
    assert before.ttft is not None
    assert not before.ttft.relieved


def turned(t: float, before: int, after: int, source: str = "code") -> KnobsChanged:
    changed = {"max_num_seqs": (before, after)}
    return KnobsChanged(t=t, changed=changed, source=source, step=9, ms=1)  # type: ignore[arg-type]  # ints are knob values, dict is invariant


def test_waits_are_named_by_the_value_that_was_in_force_and_not_by_today_s() -> None:
    why = explain([*waiting_by_cap(10, 0, 4), turned(15, 2, 32)], Knobs(max_num_seqs=32))
    assert why.ttft is not None
    assert (why.ttft.knob, why.ttft.value, why.ttft.now) == ("max_num_seqs", 2, 32)
    assert (
        "These waits were under max_num_seqs = 2; it is 32 now, and nothing has come since."
        in str(why)
    )
    assert "binds" not in str(why)
    assert [(metric, value) for metric, value, *_ in bars(why)] == [("TTFT", "max_num_seqs = 2")]


def test_a_wait_counts_under_the_value_that_it_was_mostly_waited_under() -> None:
    """All ten come under 2 and go on waiting; 32 lets them in at once, at 9.5."""
    events: list[Event] = []
    for i in range(10):
        events += [submitted(0, f"{i}"), waits_for(0, f"{i}", "cap")]
    events.append(turned(9.5, 2, 32))
    for i in range(10):
        events += [dispatched(10, f"{i}"), first(10, f"{i}"), tokens(10, f"{i}")]
    why = explain(events, Knobs(max_num_seqs=32))
    assert why.ttft is not None
    assert (why.ttft.value, why.ttft.since) == (2, None)
    assert "were under max_num_seqs = 2; it is 32 now, and nothing has come since" in str(why)


def test_a_value_that_is_set_and_not_yet_published_is_not_said_to_bind() -> None:
    events = [turned(0, 2, 4), *waiting_by_cap(10, 0.1, 4)]
    why = explain(events, Knobs(max_num_seqs=32), now=15)
    assert "under max_num_seqs = 4; it is 32 now, and nothing has come since" in str(why)


def test_mixed_waits_are_two_bars_and_the_value_of_now_is_judged_by_its_own() -> None:
    events = [*waiting_by_cap(10, 0, 4), turned(14.5, 2, 8), *waiting_by_cap(10, 15, 0.8)]
    why = explain(events, Knobs(max_num_seqs=8), now=29)
    drawn = bars(why)
    assert [(value, round(p95, 6)) for _, value, p95, _ in drawn] == [
        ("max_num_seqs = 2", 4.0), ("max_num_seqs = 8 now", 0.8)
    ]  # fmt: skip
    assert why.ttft is not None
    assert [(u.value, u.n, u.binds) for u in why.ttft.under] == [(2, 10, True), (8, 10, True)]
    assert "max_num_seqs = 8 binds: more at once" in str(why)
    few = explain(events[:-36], Knobs(max_num_seqs=8), now=29)
    assert "were under max_num_seqs = 2; it is 8 now, and only 4 have come since." in str(few)
    assert len(bars(few)) == 2
    assert "max_num_seqs = 2" in few._repr_html_()


def test_waits_that_compare_made_are_named_as_its_own() -> None:
    events = [
        turned(0, 32, 2, "compare"), *waiting_by_cap(10, 0.1, 1), turned(11.5, 2, 16, "compare"),
        *waiting_by_cap(10, 12, 0.5), turned(23, 16, 32, "compare"),
    ]  # fmt: skip
    assert (
        "These waits were under max_num_seqs = 2 and 16, set by compare; it is 32 now, and "
        "nothing has come since." in str(explain(events, Knobs(max_num_seqs=32)))
    )


def test_a_wait_before_a_closed_batch_is_named_by_the_batching_that_it_was_under() -> None:
    changed = {"batching": ("none", "continuous")}
    turned = KnobsChanged(t=15, changed=changed, source="code", step=9, ms=1)  # type: ignore[arg-type]  # words are knob values, dict is invariant
    why = explain([*waiting_by_cap(10, 0, 4), turned], Knobs())
    assert why.ttft is not None
    assert (why.ttft.knob, why.ttft.value, why.ttft.now) == ("batching", "none", "continuous")


@given(st.lists(st.sampled_from([2, 4, 8, 32]), min_size=1, max_size=6), st.booleans())
def test_a_value_is_never_said_to_bind_that_nothing_was_measured_under(
    values: list[int], silent: bool
) -> None:
    events: list[Event] = []
    t, value = 0.0, 16
    for new in values:
        events.append(turned(t, value, new))
        events += waiting_by_cap(6, t + 0.1, 1)
        t, value = t + 8, new
    if silent:
        events.append(turned(t, value, 64))
        value = 64
    why = explain(events, Knobs(max_num_seqs=value), now=t, window_s=1e3)
    said = re.findall(r"max_num_seqs = (\d+) binds", str(why))
    assert said == ([] if silent else [str(value)])
    assert why.ttft is not None
    assert sum(each.n for each in why.ttft.under) == why.ttft.n


def test_a_change_too_young_to_be_measured_is_not_told() -> None:
    why = explain([*waiting_by_cap(10, 0, 0.1), change(10.5)], Knobs(max_num_seqs=8))
    assert why.ttft is not None
    assert why.ttft.knob == "max_num_seqs"
    assert why.ttft.effect is None


def test_without_a_token_there_is_nothing_to_explain_but_who_waits() -> None:
    why = explain([submitted(0), waits_for(1, "a", "cap"), submitted(2, "b")], Knobs(), now=9)
    assert (why.ttft, why.itl) == (None, None)
    assert why.waiting == {"cap": 1, "other": 1}
    assert "nothing to explain" in str(why)
    assert "1 waiting for a slot" in str(why)


def test_who_was_refused_or_has_ended_waits_no_more() -> None:
    events = [submitted(0), submitted(0, "b"), refused(1), finished(1, "b")]
    assert explain(events, Knobs()).waiting == {}


def test_what_left_the_window_is_not_counted() -> None:
    events = [*waiting_by_cap(5, 0, 0.5), *waiting_by_cap(5, 100, 0.1)]
    why = explain(events, Knobs(), window_s=30)
    assert why.ttft is not None
    assert why.ttft.n == 5
    assert why.ttft.p95_s == pytest.approx(0.1)


def test_markup_in_a_page_comes_from_nobody_else() -> None:
    policy = explain(
        [submitted(0), waits_for(0, "a", "policy"), dispatched(2), first(2)],
        Knobs(policy="priority"),
    )
    assert "<b style" in policy._repr_html_()
    assert "policy = priority binds" in policy._repr_html_()


def served(workload: Workload, **options: object) -> tuple[list[Event], Why]:
    """The events of a workload through the service and the simulator, and what they come to."""
    clock, events = VirtualClock(), list[Event]()
    bus, fold = EventBus(), WhyFold()
    bus.attach(events.append)
    bus.attach(fold)
    knobs = Knobs().changed({k: v for k, v in options.items() if k in Knobs().as_dict()})
    engine_options = {k: v for k, v in options.items() if k not in knobs.as_dict()}

    async def main() -> None:
        engine = SimulatorEngine(
            sink=lambda record: publish_step(bus, record), clock=clock,
            prefill_ms=25, decode_ms=10, **engine_options,
        )
        service = Service(engine, KnobBoard(knobs), bus, clock)
        await service.start()
        await Bench(ServiceTarget(service, bus), workload).run()
        await service.stop()

    clock.run(main())
    return events, fold.explain(knobs, clock.now(), 1e9)


def test_live_and_from_the_events_afterwards_it_is_the_same() -> None:
    events, live = served(Workload(rate=20, duration_s=5, max_tokens=16), max_num_seqs=4)
    assert explain(events, Knobs(max_num_seqs=4), live.t, 1e9) == live


def test_a_crowd_before_few_places_waits_by_cap_and_the_places_bind() -> None:
    _, why = served(Workload(concurrency=64, requests=64, max_tokens=32), max_num_seqs=4)
    assert why.ttft is not None
    assert why.ttft.knob == "max_num_seqs"
    assert why.ttft.parts[0].cause == "cap"
    assert why.ttft.parts[0].share > 0.9


def test_long_prompts_under_a_small_step_budget_wait_by_the_budget() -> None:
    load = Workload(concurrency=16, requests=16, prompt_tokens=400, max_tokens=2)
    _, why = served(load, max_num_batched_tokens=100)
    assert why.ttft is not None
    assert why.ttft.knob == "max_num_batched_tokens"


def test_little_kv_makes_waits_for_kv_and_no_knob_binds() -> None:
    load = Workload(concurrency=24, requests=24, prompt_tokens=64, max_tokens=50)
    _, why = served(load, kv_capacity_tokens=512)
    assert why.ttft is not None
    assert why.ttft.parts[0].cause == "kv"


def test_one_request_alone_waits_for_nothing_but_its_own_prompt() -> None:
    _, why = served(Workload(concurrency=1, requests=8, max_tokens=8))
    assert why.ttft is not None
    assert why.ttft.parts[0].cause == "prefill"
    assert why.ttft.parts[0].share > 0.95
    assert why.itl is not None
    assert why.itl.parts[0].cause == "decode"
    assert (why.ttft.knob, why.itl.knob) == (None, None)


def test_arrivals_among_decodes_show_as_interference_in_the_gaps() -> None:
    _, why = served(Workload(rate=8, duration_s=10, prompt_tokens=500, max_tokens=64))
    assert why.itl is not None
    assert why.itl.parts[0].cause == "interference"
