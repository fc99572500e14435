"""Comparisons whose truth is known: equal sides, a slower engine, a spoiled run."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from lab.worlds import nothing, side, simulated
from llmserve.bench.load.workload import Workload
from llmserve.bench.results.report import Report
from llmserve.bench.results.slo import Slo
from llmserve.bench.run.driver import ServiceTarget
from llmserve.core.clock import VirtualClock
from llmserve.core.events import Event, KnobsChanged, Submitted
from llmserve.core.knobs import KnobError
from llmserve.lab.compare import Comparing
from llmserve.lab.comparison import CONFIDENCE, Comparison
from llmserve.lab.settings import NeedsRestart, ServiceKnobPanel, Side, Switch

SMALL = Workload(rate=40, requests=8, prompt_tokens=4, max_tokens=4)
BUSY = Workload(concurrency=4, requests=16, prompt_tokens=4, max_tokens=8)
OTHER: dict[str, Any] = {"jitter": 0.1, "seed": 2}
"""As noisy as side A, but with other luck."""


def compared(times: int, load: Workload, pairs: int, **b: Any) -> list[Comparison]:
    """A is the plain simulator with 10 % of noise in every step."""
    clock = VirtualClock()

    async def main() -> list[Comparison]:
        async with side(clock, "one", jitter=0.1, seed=1) as one, side(clock, "other", **b) as two:
            return [
                await Comparing(one, two, load, pairs=pairs, warmup=False, seed=1000 * i).run()
                for i in range(times)
            ]

    return clock.run(main())


def told_apart(comparison: Comparison) -> bool:
    return any(found.shown for found in comparison.differences())


@pytest.mark.timeout(120)
def test_equal_sides_compared_200_times_are_told_apart_no_oftener_than_stated() -> None:
    found = compared(200, SMALL, 4, **OTHER)
    alarms = sum(told_apart(each) for each in found)
    assert alarms <= 200 * (1 - CONFIDENCE), f"{alarms} false alarms in 200"
    assert alarms > 0, "intervals that never fail are wider than they need be"
    calm = [each for each in found if not told_apart(each)]
    assert all(each.verdict.startswith("no difference shown between A (one)") for each in calm)


def test_an_engine_slower_by_a_tenth_is_found() -> None:
    slower = OTHER | {"prefill_ms": 27.5, "decode_ms": 11.0}
    found = compared(20, BUSY, 6, **slower)
    assert all(each.verdict.startswith("A (one) is better than B (other)") for each in found)
    itl = [each.difference("itl_mean") for each in found]
    shares = [d.change or 0.0 for d in itl if d is not None]
    assert sum(shares) / 20 == pytest.approx(0.10, abs=0.015), "and its size is told right"


def test_both_sides_meet_the_same_arrivals_in_turns_that_cancel_a_drift() -> None:
    clock = VirtualClock()
    heard: dict[str, list[Submitted]] = {"A": [], "B": []}
    order: list[str] = []

    def listen(name: str, event: Event) -> None:
        if isinstance(event, Submitted):
            heard[name].append(event)
            order.append(name)

    async def main() -> Comparison:
        async with simulated(clock) as (a, bus_a), simulated(clock) as (b, bus_b):
            bus_a.attach(lambda event: listen("A", event))
            bus_b.attach(lambda event: listen("B", event))
            one = Side("a", ServiceTarget(a, bus_a), nothing)
            other = Side("b", ServiceTarget(b, bus_b), nothing)
            return await Comparing(one, other, SMALL, pairs=4, warmup=False).run()

    found = clock.run(main())
    assert found.order == "ABBAABBA"
    assert [name for name, _ in zip(order[::8], range(8), strict=True)] == list("ABBAABBA")
    for name in "AB":
        assert len(heard[name]) == 32
    gaps = {
        name: [round(b.t - a.t, 6) for a, b in zip(heard[name], heard[name][1:], strict=False)]
        for name in "AB"
    }
    for pair in range(4):
        run = slice(8 * pair, 8 * pair + 7)
        assert gaps["A"][run] == pytest.approx(gaps["B"][run], abs=2e-6)
    assert gaps["A"][:7] != gaps["A"][8:15], "each pair has luck of its own"
    assert not told_apart(found), "without noise equal sides differ by nothing at all"


def test_two_policies_of_one_service_and_its_knobs_come_back() -> None:
    clock = VirtualClock()
    load = Workload(concurrency=8, requests=24, prompt_tokens=4, max_tokens=(2, 30))
    sources: list[str] = []

    async def main() -> Comparison:
        async with simulated(clock) as (service, bus):
            bus.attach(lambda e: sources.append(e.source) if isinstance(e, KnobsChanged) else None)
            await service.set_knobs({"max_num_seqs": 4})
            switch, target = Switch(ServiceKnobPanel(service)), ServiceTarget(service, bus)
            a, b = (switch.side(s, target) for s in ("fifo", {"max_num_seqs": 2}))
            found = await Comparing(a, b, load, pairs=3, slo=Slo(ttft_ms=200)).run()
            await switch.back()
            assert service.board.current.max_num_seqs == 4
            assert service.board.current.policy == "fifo"
            return found

    found = clock.run(main())
    assert "A (policy=fifo) and B (max_num_seqs=2) differ, and neither is better" in found.verdict
    winners = {d.figure: d.better for d in found.differences()}
    assert (winners["e2e_mean"], winners["generated_tokens_per_s"]) == ("A", "A")
    assert winners["itl_mean"] == "B", "smaller batches meet fewer prefills"
    assert {run.seq_fill is not None and run.seq_fill > 0.5 for run in found.runs_b} == {True}
    goodput = found.difference("goodput_per_s")
    assert goodput is not None
    assert goodput.a > goodput.b
    assert sources.count("lab") >= 4


def test_settings_do_not_add_up_and_wrong_ones_are_refused_before_anything_runs() -> None:
    clock = VirtualClock()

    async def main() -> None:
        async with simulated(clock, max_num_seqs_ceiling=8) as (service, bus):
            switch, target = Switch(ServiceKnobPanel(service)), ServiceTarget(service, bus)
            await switch.to(switch.read({"policy": "priority"}))
            await switch.to(switch.read({"max_num_seqs": 2}))
            now = service.board.current
            assert (now.policy, now.max_num_seqs) == ("fifo", 2)
            with pytest.raises(KnobError, match="policy"):
                switch.side("fastest", target)
            with pytest.raises(NeedsRestart, match="max_num_seqs=64 is above"):
                await switch.to(switch.read({"max_num_seqs": 64}))

    clock.run(main())


def test_a_figure_that_was_0_is_compared_by_its_difference() -> None:
    (found,) = compared(1, SMALL, 3, **OTHER)
    none = tuple(msgspec.structs.replace(run, met=0) for run in found.runs_a)
    some = tuple(msgspec.structs.replace(run, met=8 - i) for i, run in enumerate(found.runs_b))
    rated = msgspec.structs.replace(found, runs_a=none, runs_b=some)
    goodput = rated.difference("goodput_per_s")
    assert goodput is not None
    assert (goodput.ratio, goodput.change) == (False, None)
    assert str(goodput).startswith("goodput: ")


def test_figures_that_differ_by_rounding_alone_are_equal() -> None:
    (found,) = compared(1, SMALL, 2, **OTHER)
    b = [msgspec.structs.replace(r, duration_s=r.duration_s * (1 - 1e-14)) for r in found.runs_a]
    assert b[0].generated_tokens_per_s > found.runs_a[0].generated_tokens_per_s
    assert not told_apart(msgspec.structs.replace(found, runs_b=tuple(b)))


def test_sides_to_which_nobody_came_get_no_verdict() -> None:
    (found,) = compared(1, Workload(rate=0.001, duration_s=1), 2)
    assert found.verdict == "no verdict: A served nothing in 2 of 2 runs"


def test_what_slows_both_of_a_pair_cancels() -> None:
    """The machine is three times as slow in one pair as in another; B takes a tenth longer."""
    (found,) = compared(1, SMALL, 4, **OTHER)
    slow = (1.0, 3.0, 1.5, 2.0)
    base = found.runs_a[0]

    def runs(factor: float) -> tuple[Report, ...]:
        return tuple(
            msgspec.structs.replace(
                base, itl=msgspec.structs.replace(base.itl, mean=0.01 * factor * pair)
            )
            for pair in slow
        )

    paired = msgspec.structs.replace(found, runs_a=runs(1.0), runs_b=runs(1.1))
    itl = paired.difference("itl_mean")
    assert itl is not None
    assert itl.better == "A"
    assert itl.change == pytest.approx(0.1)


def test_a_spoiled_run_gets_no_verdict() -> None:
    (found,) = compared(1, SMALL, 2, **OTHER)
    late = msgspec.structs.replace(
        found.runs_a[0].lag, n=8, mean=0.2, p50=0.2, p90=0.2, p95=0.2, p99=0.2
    )
    slow_client = msgspec.structs.replace(found.runs_a[0], lag=late)
    spoiled = msgspec.structs.replace(found, runs_a=(slow_client, *found.runs_a[1:]))
    assert spoiled.verdict == "no verdict: the runs are spoiled (see the warnings)"
    assert "A: CLIENT WAS THE LIMIT" in str(spoiled)
    dirty = msgspec.structs.replace(found.runs_b[1], cached_tokens=20)
    assert "no verdict" in msgspec.structs.replace(found, runs_b=(found.runs_b[0], dirty)).verdict


def test_sides_that_win_in_different_figures_are_not_ranked() -> None:
    first_fast = OTHER | {"prefill_ms": 5.0, "decode_ms": 20.0}
    (found,) = compared(1, BUSY, 6, **first_fast)
    assert "neither is better in all" in found.verdict
    assert {d.better for d in found.differences() if d.shown} == {"A", "B"}


def test_refusals_of_one_side_are_told_beside_its_latencies() -> None:
    clock = VirtualClock()

    async def main() -> Comparison:
        async with simulated(clock) as (service, bus):
            switch, target = Switch(ServiceKnobPanel(service)), ServiceTarget(service, bus)
            strict = {"max_active": 1, "queue_mode": "reject"}
            a, b = (switch.side(s, target) for s in ({}, strict))
            return await Comparing(a, b, SMALL, pairs=2, warmup=False).run()

    found = clock.run(main())
    (told,) = found.warnings()
    refused = sum(sum(run.errors.values()) for run in found.runs_b)
    assert re.fullmatch(rf"B: not served: {refused} \w+, of 16 requests; .* of the others", told)


def test_a_side_that_refuses_is_not_ranked_by_the_latencies_of_the_rest() -> None:
    (found,) = compared(1, BUSY, 4, **OTHER)
    few = [
        msgspec.structs.replace(
            run, n=run.n // 2, errors={"queue_full": run.n - run.n // 2},
            ttft=msgspec.structs.replace(run.ttft, mean=(run.ttft.mean or 0) / 9),
        )
        for run in found.runs_b
    ]  # fmt: skip
    refusing = msgspec.structs.replace(found, runs_b=tuple(few))
    shown = refusing.difference("ttft_mean")
    assert shown is not None
    assert shown.better == "B"
    assert refusing.verdict.startswith("not ranked, for A served 100% of its requests and B 50%: ")


def test_a_comparison_shows_everywhere_and_comes_back_from_json() -> None:
    (found,) = compared(1, BUSY, 3, **OTHER)
    text, page = str(found), found._repr_html_()
    for word in ("mean TTFT", "generated tokens/s", "ABBAAB", "hold together at 95%"):
        assert word in text
        assert word in page
    assert found.to_markdown().count("\n| ") == 7
    assert list(found.to_frame().index) == list(found.judged())
    assert found.latencies()._repr_mimebundle_()["image/svg+xml"]
    assert Comparison.from_json(found.to_json()) == found


def test_stopped_it_keeps_the_pairs_that_ended_whole() -> None:
    clock = VirtualClock()

    async def main() -> Comparison:
        async with side(clock, "a") as a, side(clock, "b") as b:
            job = Comparing(a, b, SMALL, pairs=6, warmup=False)


            entered = 0

            async def enter() -> None:
                nonlocal entered
                entered += 1
                if entered == 3:
                    job.stop()

            job._sides["A"] = Side("a", a.target, enter)
            return await job.run()

    found = clock.run(main())
    assert (found.pairs, found.interrupted) == (2, True)
    assert "interrupted: 2 of 6 pairs came to their end" in found.warnings()
    with pytest.raises(ValueError, match="2 pairs or more"):
        Comparing(*found_sides(), SMALL, pairs=1)


def found_sides() -> tuple[Side, Side]:
    nobody: Any = None
    return Side("a", nobody, nothing), Side("b", nobody, nothing)
