"""Several runs as one result: means, intervals, what is said of them."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from bench.world import World
from llmserve.bench.load.workload import Workload
from llmserve.bench.results.result import Result
from llmserve.bench.results.slo import Slo
from llmserve.bench.run.driver import ServiceTarget
from llmserve.bench.run.repeats import Repeats


def repeated(stop_after_s: float | None = None, slo: Slo | None = None, **load: Any) -> Result:
    async def main(world: World) -> Result:
        target = ServiceTarget(world.service, world.bus)
        job = Repeats(target, Workload(**load), slo=slo, engine="simulator", model="none")
        run = asyncio.create_task(job.run())
        if stop_after_s is not None:
            await world.clock.sleep_until(stop_after_s)
            job.stop()
        return await run

    return World().run(main)


LOAD: dict[str, Any] = {"rate": 20.0, "duration_s": 3.0, "max_tokens": (1, 30)}


def test_a_figure_is_the_mean_of_the_runs_with_its_interval() -> None:
    result = repeated(**LOAD)
    ttfts = [run.ttft.mean for run in result.runs]
    assert len(set(ttfts)) == 3, "each run had arrivals of its own"
    found = result.figure("ttft_mean")
    assert found is not None
    assert found.n == 3
    assert found.value == pytest.approx(sum(t or math.nan for t in ttfts) / 3)
    assert found.half is not None
    assert found.half > 0
    assert result.ttft.mean == found.value
    assert result.ttft.n == sum(run.ttft.n for run in result.runs)
    assert result.n == sum(run.n for run in result.runs) == result.sent


def test_a_result_shows_in_a_terminal_a_notebook_a_frame_and_markdown() -> None:
    result = repeated(slo=Slo(ttft_ms=100), **LOAD)
    text = str(result)
    assert f"{result.n} of {result.sent} requests served in 3 runs; ± holds 95 % over runs" in text
    assert "goodput, requests/s" in text
    for word in ("TTFT", "ITL", "TPOT", "E2E", "queue", "p90", "±"):
        assert word in text
        assert word in result._repr_html_()
        assert word in result.to_markdown()
    frame = result.to_frame()
    assert frame.loc["ttft_p99", "runs"] == 3
    assert result.itl.n > result.n
    counts = frame["n"].to_dict()
    assert counts["itl_p50"] == sum(run.itl.n for run in result.runs)
    assert counts["ttft_p99"] == counts["requests_per_s"] == result.n
    (line,) = [line for line in text.splitlines() if line.startswith("ITL")]
    assert line.split()[1] == f"{result.itl.n:,}"
    assert frame["low"].to_dict()["ttft_p99"] < frame["mean"].to_dict()["ttft_p99"]
    assert frame.loc["generated_tokens_per_s", "run 2"] == pytest.approx(
        result.runs[1].generated_tokens_per_s
    )
    assert Result.from_json(result.to_json()) == result


def test_its_figures_are_drawn_for_pages_with_and_without_a_kernel() -> None:
    result = repeated(**LOAD)
    for figure in (result.latencies(), result.timeline()):
        bundle = figure._repr_mimebundle_()
        assert bundle["image/svg+xml"].startswith("<svg")
        assert bundle["application/vnd.plotly.v1+json"]["data"]
    ttft = next(t for t in result.latencies().plotly["data"] if t["name"] == "TTFT")
    assert ttft["y"] == list(range(101))
    assert ttft["x"] == sorted(ttft["x"])
    for run in (result.runs[0], repeated(**LOAD, requests=2).runs[0]):
        bins = run.timeline
        width = run.duration_s / len(bins)
        assert width >= 0.05
        assert len(bins) == 60 or width < 0.1
        tokens = sum(m.tokens_per_s for m in bins) * width
        assert tokens == pytest.approx(run.generated_tokens, rel=1e-6)


def test_one_run_has_no_interval_and_says_so() -> None:
    async def main(world: World) -> Result:
        target = ServiceTarget(world.service, world.bus)
        load = Workload(concurrency=1, requests=2, max_tokens=2)
        return await Repeats(target, load, repeats=1, warmup=False).run()

    result = World().run(main)
    assert "served in one run: no interval" in str(result)
    assert "±" not in str(result)


def test_stopped_in_its_second_run_it_keeps_the_first() -> None:
    result = repeated(stop_after_s=5.5, **LOAD)
    assert (len(result.runs), result.interrupted, result.planned) == (1, True, 3)
    assert "interrupted: 1 of 3 runs came to their end" in result.warnings()
    assert not result.errors, "our own aborts are no errors"
