"""The recorder on hand-made events."""

from __future__ import annotations

import pytest

from bench.world import World
from llmserve.bench.results import recorder as recording
from llmserve.bench.results.recorder import BenchRecorder
from llmserve.bench.results.report import Report
from llmserve.bench.run.driver import Bench
from llmserve.core.events import Event
from observe.tape import dispatched, finished, one_request, step, submitted


def recorded(*events: Event) -> BenchRecorder:
    recorder = BenchRecorder()
    recorder.expect("a")
    for event in events:
        recorder(event)
    return recorder


def test_a_report_has_the_same_definitions_as_the_live_figures() -> None:
    report = recorded(*one_request(), *one_request(2, "somebody else's")).report()
    assert (report.sent, report.n, report.generated_tokens, report.prompt_tokens) == (1, 1, 4, 10)
    assert (report.queue.p50, report.ttft.p50, report.e2e.p50, report.tpot.p50) == (1, 3, 6, 1)
    assert (report.itl.n, report.itl.mean, report.duration_s) == (2, 1.5, 6)


def test_only_steps_during_the_run_count_as_its_fill() -> None:
    run = [submitted(0), dispatched(0), step(1, decode=2), finished(1)]
    report = recorded(step(0, decode=4, prefill=9), *run, step(2, decode=4, prefill=9)).report()
    assert (report.seq_fill, report.batch_fill) == (2 / 4, 2 / 20)


def test_a_run_may_be_read_before_anything_came() -> None:
    report = recorded().report("nothing yet")
    assert (report.sent, report.duration_s, report.ttft.n, report.batch_fill) == (0, 0, 0, None)


def test_tokens_counted_by_delivery_are_put_right_at_the_end() -> None:
    events = [*one_request()[:-1], finished(6, tokens=9)]
    assert recorded(*events).report().generated_tokens == 9


def test_memory_is_bounded_and_a_run_that_outgrows_it_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recording, "GAPS", 512)
    monkeypatch.setattr(recording, "REQUESTS", 128)

    async def main(world: World) -> tuple[Report, Bench]:
        bench = world.bench(concurrency=16, requests=1000, prompt_tokens=4, max_tokens=3)
        return await bench.run(), bench

    report, bench = World().run(main)
    kept = bench._recorder
    assert (report.sent, report.n, report.generated_tokens) == (1000, 1000, 3000), "all are counted"
    assert (report.ttft.n, report.capped) == (128, True)
    assert report.itl.n <= 512
    assert "more samples than are kept" in str(report)
    assert not kept._expected
    assert not kept._journeys._live
