"""What a run must confess: help from a cache, a client too slow, objectives not met."""

from __future__ import annotations

from typing import Any

import pytest

from bench.world import World
from llmserve.bench.results.report import Report
from llmserve.bench.results.slo import Slo, parse_slo
from llmserve.core.types import Chunk, Request
from llmserve.engines.base import Deliver
from support.scripted import ScriptedEngine


class CachingEngine(ScriptedEngine):
    """Remembers every prompt, block by block of 16, as a prefix cache does."""

    def __init__(self) -> None:
        super().__init__(["x", "y"])
        self._known: set[tuple[int, ...]] = set()
        self.prompts: list[tuple[int, ...]] = []

    async def generate(self, request: Request, deliver: Deliver) -> None:
        ids = request.prompt_ids
        self.prompts.append(ids)
        heads = [ids[:end] for end in range(16, len(ids), 16)]
        hit = max((len(head) for head in heads if head in self._known), default=0)
        self._known.update(heads)
        deliver(Chunk(text="x", token_ids=(1,), cached_tokens=hit))
        deliver(Chunk(text="y", token_ids=(2,), finish_reason="length"))


def runs(engine: ScriptedEngine, times: int, **load: Any) -> list[Report]:
    async def main(world: World) -> list[Report]:
        return [await world.bench(**load).run() for _ in range(times)]

    return World(engine).run(main)


LOAD = {"concurrency": 2, "requests": 10, "prompt_tokens": 64, "max_tokens": 2}


def test_a_second_run_finds_nothing_of_the_first_in_the_cache() -> None:
    engine = CachingEngine()
    reports = runs(engine, 2, **LOAD)
    assert [r.prefix_hits for r in reports] == [0, 0]
    assert not any(r.contaminated for r in reports)
    assert len(set(engine.prompts)) == 20


def test_a_cache_filled_before_the_run_is_detected_and_said() -> None:
    """A shared beginning whose first request is a hit already: somebody sent it before."""

    class Warm(CachingEngine):
        async def generate(self, request: Request, deliver: Deliver) -> None:
            deliver(Chunk(text="x", token_ids=(1,), cached_tokens=48))
            deliver(Chunk(text="y", token_ids=(2,), finish_reason="length"))

    (report,) = runs(Warm(), 1, **LOAD)
    assert report.contaminated
    assert report.prefix_hits == 0.75
    assert "CONTAMINATED CACHE: 75% of the prompt tokens were cached" in str(report)


def test_asking_for_the_same_prompts_is_no_contamination() -> None:
    first, second = runs(CachingEngine(), 2, same_prompts=True, **LOAD)
    assert first.prefix_hits == 0
    assert second.prefix_hits == pytest.approx(48 / 64)
    assert not second.contaminated


def test_a_shared_beginning_may_be_cached_by_the_run_itself_and_is_no_contamination() -> None:
    engine = CachingEngine()
    load = LOAD | {"prefix_tokens": 48, "prefix_groups": 2}
    reports = runs(engine, 2, **load)
    for report in reports:
        assert report.prefix_hits == pytest.approx(48 * 8 / 640), "all but each group's first"
        assert not report.contaminated
    heads = {prompt[:48] for prompt in engine.prompts}
    assert len(heads) == 4, "two groups, anew in each run"
    assert {len(prompt) for prompt in engine.prompts} == {64}


def test_a_chat_sends_all_that_was_said_and_its_cache_is_its_own() -> None:
    engine = CachingEngine()
    load = {"concurrency": 1, "requests": 1, "prompt_tokens": 24, "max_tokens": 2, "turns": 3}
    (report,) = runs(engine, 1, think_s=0.5, **load)
    one, two, three = engine.prompts
    assert [len(p) for p in engine.prompts] == [24, 50, 76]
    assert two[:26] == (*one, 1, 2), "prompt, reply, and something new"
    assert three[:52] == (*two, 1, 2)
    assert (report.sent, report.n, report.contaminated) == (3, 3, False)
    assert (report.prefix_hits or 0) > 0.4
    assert report.duration_s == pytest.approx(1.0, abs=0.01), "it thought twice"


def test_goodput_counts_who_met_the_run_s_limits_or_its_own() -> None:
    async def main(world: World) -> list[Report]:
        found = []
        for slo, own in ((None, None), (Slo(ttft_ms=60), None), (Slo(ttft_ms=60), 1000.0)):
            run = world.bench(
                slo=slo, rate=100, process="constant", requests=8, prompt_tokens=9, max_tokens=3,
                ttft_slo_ms=own,
            )
            found.append(await run.run())
        return found

    plain, strict, own = World(max_num_seqs=2).run(main)
    assert (plain.met, plain.goodput_per_s) == (None, None), "no objective, no goodput"
    waited = [t for t in strict.quantiles["ttft"] if t <= 0.06]
    assert strict.met == pytest.approx(len(waited) / 101 * 8, abs=1)
    assert 0 < (strict.met or 0) < 8
    assert own.met == 8, "its own objective counts in place of the run's"
    assert "goodput" in str(strict)
    assert "within TTFT 60 ms" in str(strict)


def test_an_slo_in_words() -> None:
    assert parse_slo("ttft:200 tpot=50") == Slo(ttft_ms=200, tpot_ms=50)
    assert str(Slo(ttft_ms=200, e2e_ms=9)) == "TTFT 200 ms and E2E 9 ms"
    for wrong in ("ttfb:1", "ttft:soon", "", "ttft:-1"):
        with pytest.raises(ValueError, match=r"SLO|limit"):
            parse_slo(wrong)
