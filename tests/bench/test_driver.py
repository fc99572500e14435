"""The bench against servers whose truth is known, on virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.world import StalledEngine, World
from llmserve.bench.load.workload import Workload
from llmserve.bench.results.recorder import BenchRecorder
from llmserve.bench.results.report import Report
from llmserve.bench.results.slo import Slo
from llmserve.bench.run.driver import Bench, Progress, ServiceTarget, run_bench
from llmserve.core.clock import Clock, VirtualClock
from llmserve.core.events import Rejection
from llmserve.observe.trace import TraceWriter, read_trace, replay

CLOSE = 1e-4
"""Seconds: the simulator lets each moment settle for a microsecond a step."""


def bench(world: World, **load: Any) -> Report:
    async def main(world: World) -> Report:
        return await world.bench(**load).run()

    return world.run(main)


def test_a_lone_request_costs_what_the_simulator_says() -> None:
    report = bench(World(), concurrency=1, requests=1, prompt_tokens=20, max_tokens=5)
    assert (report.sent, report.n, report.errors, report.unfinished) == (1, 1, {}, 0)
    assert report.ttft.p50 == pytest.approx(0.025, abs=CLOSE), "one prefill step of 25 ms"
    assert report.itl.p50 == pytest.approx(0.010, abs=CLOSE), "decode steps of 10 ms"
    assert report.tpot.p99 == pytest.approx(0.010, abs=CLOSE)
    assert report.e2e.mean == pytest.approx(0.065, abs=CLOSE)
    assert report.duration_s == pytest.approx(0.065, abs=CLOSE)
    assert (report.prompt_tokens, report.generated_tokens) == (20, 5)
    assert report.generated_tokens_per_s == pytest.approx(5 / 0.065, rel=0.01)


def test_a_closed_loop_keeps_its_places_full_and_no_fuller() -> None:
    world = World()
    report = bench(world, concurrency=4, requests=12, prompt_tokens=20, max_tokens=5)
    assert (report.sent, report.n) == (12, 12)
    assert report.itl.n == 12 * 4
    assert max(len(r.rows) for r in world.telemetry.steps.records()) == 4
    assert report.duration_s == pytest.approx(3 * 0.065, abs=CLOSE), "three rounds, in step"
    assert report.seq_fill == pytest.approx(4 / 16)


def test_a_closed_loop_bounded_by_time_starts_nothing_after_it() -> None:
    report = bench(World(), concurrency=1, duration_s=0.2, prompt_tokens=20, max_tokens=5)
    assert report.sent == 4, "at 0, 65, 130 and 195 ms"
    assert report.n == 4, "what was under way ends"


def test_a_stall_of_two_seconds_shows_in_the_p99_of_an_open_loop() -> None:
    clock = VirtualClock()
    world = World(StalledEngine(clock, begins=5.0, ends=7.0), clock=clock)
    report = bench(
        world, rate=10, process="constant", duration_s=10, prompt_tokens=5, max_tokens=2
    )
    assert report.n == 100
    assert report.ttft.p50 == pytest.approx(0, abs=CLOSE)
    assert report.ttft.p99 == pytest.approx(1.9, abs=0.02), "20 of 100 waited 2.0, 1.9, … 0.1 s"
    stalled = [t for t in ttfts(world) if t > 0.05]
    assert len(stalled) == 20, "all who would have come meanwhile are charged for it"


def ttfts(world: World) -> list[float]:
    rows = world.telemetry.requests.rows()
    return [row.ttft_s for row in rows if row.ttft_s is not None]


def test_open_loop_latency_counts_from_the_scheduled_arrival_when_the_driver_is_late() -> None:
    async def main(world: World) -> Report:
        target = ServiceTarget(world.service, world.bus)
        target.clock = LateClock(world.clock)
        load = Workload(
            rate=1, process="constant", duration_s=3, prompt_tokens=5, max_tokens=1
        )
        return await Bench(target, load).run()

    report = World().run(main)
    assert report.lag.p99 == pytest.approx(0.5, abs=CLOSE)
    assert report.client_limited
    assert "CLIENT WAS THE LIMIT: it sent 1 % of its requests 500 ms late" in str(report)
    assert report.ttft.p50 == pytest.approx(0.525, abs=CLOSE)


class LateClock:
    """A driver on a busy machine: it wakes half a second too late."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def now(self) -> float:
        return self._clock.now()

    async def sleep_until(self, when: float) -> None:
        await self._clock.sleep_until(when + 0.5)


def test_the_report_equals_that_of_the_trace_that_was_written_meanwhile(tmp_path: Path) -> None:
    """TTFT, ITL, TPOT, E2E, queue, rates, goodput, fill: every figure, from the file alone."""
    world = World(max_num_seqs=4)
    path, slo = tmp_path / "run.jsonl", Slo(ttft_ms=400, tpot_ms=12)
    load: dict[str, Any] = {"rate": 30.0, "duration_s": 5.0}
    load |= {"prompt_tokens": (5, 60), "max_tokens": (1, 30)}

    async def main(world: World) -> Report:
        now = world.clock.now()
        writer = TraceWriter(str(path), t=now, model="m", engine="simulator", knobs={})
        world.bus.attach(writer)
        report = await world.bench(slo=slo, **load).run()
        world.bus.detach(writer)
        writer.close()
        return report

    live = world.run(main)
    recorder = BenchRecorder(everything=True, slo=slo)
    replay(read_trace(path), recorder)
    assert recorder.report(live.workload, lag=live.lag) == live
    figures = live.figures()
    for name in ("ttft_p99", "itl_p95", "tpot_mean", "e2e_p50", "queue_p90", "seq_fill", "kv_peak"):
        assert figures[name], name
    assert 0 < (live.met or 0) < live.n, "some met the SLO and some did not"
    assert live.n > 100
    assert live.queue.p99 is not None
    assert live.queue.p99 > 0, "it was enough load to wait for"


def test_requests_of_others_are_not_in_the_report() -> None:
    world = World()

    async def main(world: World) -> Report:
        other = asyncio.create_task(
            world.bench(concurrency=2, requests=20, prompt_tokens=5, max_tokens=9).run()
        )
        report = await world.bench(concurrency=1, requests=3, prompt_tokens=5, max_tokens=4).run()
        await other
        return report

    report = world.run(main)
    assert (report.sent, report.generated_tokens) == (3, 12)


def test_refusals_are_errors_by_reason_and_have_no_latency() -> None:
    world = World(max_active=1, queue_mode="reject")
    report = bench(world, rate=100, process="constant", requests=10, prompt_tokens=5, max_tokens=50)
    assert report.errors == {"no_place": 9}
    assert (report.sent, report.n, report.e2e.n) == (10, 1, 1)


def test_timeouts_in_the_queue_and_in_the_engine_are_told_apart() -> None:
    world = World(max_active=1, queue_timeout_s=0.5, request_timeout_s=1.0)
    report = bench(world, rate=50, process="constant", requests=3, prompt_tokens=5, max_tokens=200)
    assert report.errors == {"queue_timeout": 2, "timeout": 1}
    assert (report.n, report.ttft.n) == (0, 1)


def test_a_prompt_too_long_for_the_model_is_an_error_not_a_crash() -> None:
    report = bench(World(), concurrency=1, requests=1, prompt_tokens=20_000, max_tokens=1)
    assert report.errors == {"too_long": 1}


def test_refused_places_of_a_closed_loop_knock_again_only_after_a_pause() -> None:
    world = World(max_active=1, queue_mode="reject")
    report = bench(world, concurrency=2, duration_s=0.95, prompt_tokens=5, max_tokens=1000)
    refused = [event for event in world.events if isinstance(event, Rejection)]
    assert len(refused) == report.errors["no_place"] == 10, "one each 100 ms, and the loop lived"


def test_the_driver_gives_up_what_it_cannot_hold_and_says_so() -> None:
    world = World()

    async def main(world: World) -> Report:
        return await world.bench(
            cap=10, rate=1000, requests=50, prompt_tokens=5, max_tokens=20
        ).run()

    report = world.run(main)
    assert report.sent == 50
    assert report.errors["client_limit"] == 50 - report.n > 0


@pytest.mark.parametrize("way", ["stop", "cancel"])
def test_an_interrupt_keeps_what_was_measured_and_frees_all_places(way: str) -> None:
    world = World()

    async def main(world: World) -> Report:
        run = world.bench(concurrency=4, requests=1000, prompt_tokens=20, max_tokens=5)
        task = asyncio.create_task(run.run())
        await world.clock.sleep_until(0.150)  # two whole rounds, and the third under way
        if way == "stop":
            run.stop()
            report = await task
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            report = run.report()
        await world.clock.sleep_until(0.3)
        assert world.telemetry.snapshot().running == 0, "nothing of ours is left in the engine"
        return report

    report = world.run(main)
    assert (report.interrupted, report.n, report.unfinished, report.errors) == (True, 8, 4, {})
    assert "interrupted with 4 under way" in str(report)


def test_stopping_after_the_end_changes_nothing() -> None:
    async def main(world: World) -> Report:
        run = world.bench(concurrency=1, requests=1, prompt_tokens=5, max_tokens=1)
        await run.run()
        run.stop()
        return run.report()

    assert not World().run(main).interrupted


def test_progress_is_told_as_requests_end() -> None:
    told: list[Progress] = []

    async def main(world: World) -> Report:
        return await world.bench(
            progress=told.append, concurrency=2, requests=6, prompt_tokens=20, max_tokens=5
        ).run()

    World().run(main)
    assert [p.good for p in told][-1] == 6
    assert [p.elapsed_s for p in told] == sorted(p.elapsed_s for p in told)


def test_run_bench_is_the_whole_in_one_call() -> None:
    async def main(world: World) -> Report:
        workload = Workload(concurrency=2, requests=4, prompt_tokens=5, max_tokens=2)
        return await run_bench(world.service, world.telemetry, workload)

    assert World().run(main).n == 4


def test_a_run_on_virtual_time_is_the_same_every_time() -> None:
    load = {"rate": 30.0, "duration_s": 3.0, "prompt_tokens": (5, 60), "max_tokens": (1, 30)}
    assert msgspec.json.encode(bench(World(), **load)) == msgspec.json.encode(
        bench(World(), **load)
    )
