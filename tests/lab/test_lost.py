"""Servers that die while they are measured: what was measured is kept, zeros are no figures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.world import World
from lab.worlds import nothing, side, simulated
from llmserve.bench.load.workload import Workload
from llmserve.bench.results.report import Report
from llmserve.bench.results.result import Result
from llmserve.bench.run.driver import ServiceTarget
from llmserve.bench.run.repeats import Repeats
from llmserve.core.clock import VirtualClock
from llmserve.core.knobs import Clamp, Knobs
from llmserve.core.types import Request
from llmserve.engines.base import EngineError
from llmserve.lab.compare import Comparing
from llmserve.lab.comparison import Comparison
from llmserve.lab.live_sweep import Sweeping
from llmserve.lab.settings import ServiceKnobPanel, Side, Stage, Switch
from llmserve.lab.sweep_result import Sweep
from llmserve.serving.service import Service
from support.scripted import ScriptedEngine

LOAD = Workload(concurrency=2, requests=4, prompt_tokens=4, max_tokens=3)


class FallingPanel(ServiceKnobPanel):
    """Lets its knobs be turned so many times, and then nobody answers."""

    def __init__(self, service: Service, times: int, gone: type[Exception] = OSError) -> None:
        super().__init__(service)
        self._left, self._gone = times, gone

    async def turn(self, names: Collection[str], asked: Knobs) -> Sequence[Clamp]:
        self._left -= 1
        if self._left < 0:
            raise self._gone("nobody answers")
        return await super().turn(names, asked)


def swept(turns: int, path: Path | None = None, gone: type[Exception] = OSError) -> Sweep:
    clock = VirtualClock()

    async def main() -> Sweep:
        async with simulated(clock) as (service, bus):
            panel = FallingPanel(service, turns, gone)
            stage = Stage(ServiceTarget(service, bus), panel, "simulator", "none")
            grid = {"max_num_seqs": [1, 2]}
            return await Sweeping(stage, grid, LOAD, rounds=2, warmup=False, path=path).run()

    return clock.run(main())


@pytest.mark.parametrize("gone", [ConnectionError, EngineError])
def test_a_sweep_of_a_server_that_goes_keeps_its_runs_and_goes_on_from_its_file(
    gone: type[Exception], tmp_path: Path
) -> None:
    path = tmp_path / "sweep.jsonl"
    found = swept(3, path, gone)
    assert [len(point.runs) for point in found.points] == [1, 2]
    assert "nobody answers; its knobs may not be what they were" in str(found)
    assert [len(point.runs) for point in swept(99, path).points] == [2, 2]


@pytest.mark.parametrize("gone", [ConnectionError, EngineError])
def test_a_comparison_with_a_server_that_goes_keeps_the_pairs_that_ended(
    gone: type[Exception],
) -> None:
    clock = VirtualClock()

    async def main() -> Comparison:
        async with simulated(clock) as (service, bus):
            switch, target = Switch(FallingPanel(service, 5, gone)), ServiceTarget(service, bus)
            a, b = (switch.side({"max_num_seqs": n}, target) for n in (1, 2))
            return await Comparing(a, b, LOAD, pairs=6, warmup=False).run()

    found = clock.run(main())
    assert found.pairs == 2
    assert any("2 of 6 pairs came to their end: nobody answers" in w for w in found.warnings())


def test_an_engine_that_died_between_two_runs_has_no_cache_to_forget() -> None:
    """The next run's first request starts it anew."""
    clock, calls = VirtualClock(), []

    async def main() -> Result:
        async with simulated(clock) as (service, bus):

            async def dead() -> None:
                calls.append("asked")
                raise EngineError("its process died")

            service.engine.reset_cache = dead  # type: ignore[attr-defined]  # of the simulator
            return await Repeats(ServiceTarget(service, bus), LOAD, repeats=2).run()

    assert clock.run(main()).n == 8
    assert calls == ["asked", "asked"]


class Dead(ServiceTarget):
    """Serves so many requests, and then none."""

    def __init__(self, service: Service, bus: Any, serves: int) -> None:
        super().__init__(service, bus)
        self._serves = serves

    async def send(self, request: Request) -> Any:
        self._serves -= 1
        if self._serves < 0:
            too_long = (1,) * 1_000_000  # refused, whatever the server's settings
            request = msgspec.structs.replace(request, prompt_ids=too_long)
        return await super().send(request)


def test_runs_that_served_nothing_are_no_points_and_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"

    def run(serves: int) -> Sweep:
        clock = VirtualClock()

        async def main() -> Sweep:
            async with simulated(clock) as (service, bus):
                target = Dead(service, bus, serves)
                stage = Stage(target, ServiceKnobPanel(service), "simulator", "none")
                grid = {"concurrency": [1, 2]}
                return await Sweeping(stage, grid, LOAD, rounds=2, warmup=False, path=path).run()

        return clock.run(main())

    found = run(2 * 4)
    assert [(len(p.runs), len(p.empty)) for p in found.points] == [(1, 1), (1, 1)]
    assert all(min(point.series("generated_tokens_per_s")) > 0 for point in found.points)
    (told, *_) = [w for w in found.warnings() if "left out" in w]
    assert told == "concurrency=1: nothing was served in 1 runs, which are left out"
    assert "concurrency=1: not served: 4 too_long, of 8 requests" in "\n".join(found.warnings())
    again = run(99)
    assert [(len(p.runs), len(p.empty)) for p in again.points] == [(2, 0), (2, 0)]
    assert found.points[0].runs[0] == again.points[0].runs[0]


@pytest.mark.parametrize("serves", [0, 4])
def test_a_side_that_served_nothing_gets_no_verdict(serves: int) -> None:
    clock = VirtualClock()

    async def main() -> Comparison:
        async with simulated(clock) as (service, bus), side(clock, "other") as b:
            a = Side("dead", Dead(service, bus, serves), nothing)
            return await Comparing(a, b, LOAD, pairs=2, warmup=False).run()

    found = clock.run(main())
    empty = 2 - serves // 4
    assert found.verdict == f"no verdict: A served nothing in {empty} of 2 runs"
    assert found.n == serves


def test_the_first_error_is_told_in_its_own_words() -> None:
    engine = ScriptedEngine(["x"])
    engine.fail_next = EngineError("the  disk\nis full")

    async def main(world: World) -> Report:
        return await world.bench(concurrency=1, requests=2, prompt_tokens=4, max_tokens=3).run()

    (told,) = World(engine).run(main).warnings()
    assert told.startswith("not served: 1 error, of 2 requests (")
    assert "the disk is full" in told
