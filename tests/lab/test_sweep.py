"""Sweeps of a live service on virtual time: grids, rounds, ranks, files."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lab.worlds import simulated
from llmserve.bench.load.workload import Workload
from llmserve.bench.results.report import Report
from llmserve.core.clock import VirtualClock
from llmserve.core.events import Event, EventBus, KnobsChanged, Submitted
from llmserve.core.knobs import KnobError
from llmserve.lab.live_sweep import Sweeping, redrawing
from llmserve.lab.settings import here
from llmserve.lab.sweep_result import Sweep, combinations
from llmserve.observe.window import Summary
from llmserve.plots.live_figure import LiveFigure
from llmserve.serving.service import Service

LOAD = Workload(concurrency=8, requests=16, prompt_tokens=4, max_tokens=8)


def swept(
    grid: dict[str, list[Any]],
    load: Workload = LOAD,
    *,
    heard: Callable[[Event], None] = lambda event: None,
    after: Callable[[Service], None] = lambda service: None,
    engine: dict[str, Any] | None = None,
    **options: Any,
) -> Sweep:
    clock = VirtualClock()

    async def main() -> Sweep:
        async with simulated(clock, **(engine or {})) as (service, bus):
            bus.attach(heard)
            found = await Sweeping(here(service, bus), grid, load, **options).run()
            after(service)
            return found

    return clock.run(main())


def test_every_combination_is_measured_in_every_round_without_a_restart() -> None:
    changes: list[Event] = []
    found = swept(
        {"max_num_seqs": [1, 4, 8], "policy": ["fifo", "priority"]},
        heard=lambda e: changes.append(e) if isinstance(e, KnobsChanged) else None,
        rounds=2,
    )
    assert [p.label for p in found.points][:2] == [
        "max_num_seqs=1 policy=fifo", "max_num_seqs=1 policy=priority"
    ]
    assert [len(p.runs) for p in found.points] == [2] * 6
    rates = [p.mean("generated_tokens_per_s") or 0 for p in found.points]
    assert rates[0] < rates[2] < rates[4]
    assert changes


def test_knobs_are_what_they_were_when_it_ends() -> None:
    seen: list[int] = []
    swept({"max_num_seqs": [1, 2]}, after=lambda s: seen.append(s.board.current.max_num_seqs))
    assert seen[0] not in (1, 2)


def test_what_is_beyond_the_ceiling_is_skipped_and_says_that_it_needs_a_restart() -> None:
    found = swept({"max_num_seqs": [4, 999]}, engine={"max_num_seqs_ceiling": 8}, rounds=1)
    tried, skipped = found.points
    assert (len(tried.runs), len(skipped.runs)) == (1, 0)
    assert "start one with a higher ceiling" in (skipped.skipped or "")
    assert "max_num_seqs=999: not tried" in str(found)


def test_a_load_is_swept_as_knobs_are() -> None:
    found = swept({"concurrency": [1, 4, 16]}, LOAD, rounds=1)
    curve = found.curve().plotly["data"]
    assert len(curve) == 1
    assert len(curve[0]["x"]) == 3
    assert curve[0]["x"] == sorted(curve[0]["x"]), "more clients, more tokens per second"
    found = swept({"rate": [5.0, 50.0]}, Workload(rate=1, requests=8, max_tokens=4), rounds=1)
    assert all(len(p.runs) == 1 for p in found.points)


def test_points_that_overlap_are_not_ranked() -> None:
    noisy = {"jitter": 0.3, "seed": 3}
    found = swept({"max_num_seqs": [31, 32]}, engine=noisy, rounds=4)
    best = found.best()
    assert best.single is None
    assert "not ranked" in str(best)
    assert "is not distinct from" in str(best)


def test_a_point_that_is_shown_to_be_best_is_named() -> None:
    found = swept({"max_num_seqs": [1, 8]}, engine={"jitter": 0.1}, rounds=3)
    best = found.best()
    assert best.single is not None
    assert best.single.values == {"max_num_seqs": 8}
    assert str(found.best("ttft_mean")) == "best ttft_mean: max_num_seqs=8"


def test_points_that_refuse_or_are_spoiled_are_not_ranked() -> None:
    found = swept({"max_num_seqs": [1, 8]}, rounds=3)
    assert found.best("ttft_mean").single is found.points[1]
    one, eight = found.points
    refused = [msgspec.structs.replace(run, n=4, errors={"queue_full": 12}) for run in eight.runs]
    few = msgspec.structs.replace(eight, runs=tuple(refused))
    sweep = msgspec.structs.replace(found, points=(one, few))
    assert sweep.best("ttft_mean").single is None
    assert "not ranked, points served 25% to 100% of their requests" in str(sweep)
    assert sweep.best("generated_tokens_per_s").single is few, "of throughput nothing is hidden"
    dirty = [msgspec.structs.replace(run, cached_tokens=60) for run in eight.runs]
    spoiled = msgspec.structs.replace(
        found, points=(one, msgspec.structs.replace(eight, runs=tuple(dirty)))
    )
    assert spoiled.best("generated_tokens_per_s").single is None
    assert "not ranked, runs are spoiled" in str(spoiled)


def test_points_are_ranked_by_the_rounds_that_both_have() -> None:
    """The machine is faster in one round than in another, and a point has missed one of them."""
    found = swept({"max_num_seqs": [1, 8]}, rounds=4)

    def at(rates: list[int]) -> tuple[Report, ...]:
        run = found.points[0].runs[0]
        return tuple(
            msgspec.structs.replace(run, generated_tokens=rate, duration_s=1.0) for rate in rates
        )

    change = msgspec.structs.replace
    best = change(found.points[0], runs=at([100, 500, 800, 600]), rounds=(0, 1, 2, 3))
    other = change(found.points[1], runs=at([451, 750, 549]), rounds=(1, 2, 3))
    assert change(found, points=(best, other)).best().single is best


def test_points_with_the_same_figures_but_for_rounding_are_equal() -> None:
    found = swept({"max_num_seqs": [1, 8]}, rounds=3)
    one = found.points[0]
    other = [msgspec.structs.replace(r, duration_s=r.duration_s * (1 - 1e-14)) for r in one.runs]
    points = one, msgspec.structs.replace(one, runs=tuple(other))
    assert msgspec.structs.replace(found, points=points).best().single is None


def test_points_at_which_nobody_came_are_no_points() -> None:
    found = swept({"rate": [0.001, 0.002]}, Workload(rate=1, duration_s=1), rounds=2)
    assert not found.measured()
    assert "rate=0.001: nothing was served in 2 runs, which are left out" in str(found)


def test_points_without_a_first_token_are_shown_without_their_rank() -> None:
    """As of a server whose replies have no text."""
    found = swept({"max_num_seqs": [1, 8]}, rounds=2)
    points = tuple(
        msgspec.structs.replace(
            point, runs=tuple(msgspec.structs.replace(r, ttft=Summary()) for r in point.runs)
        )
        for point in found.points
    )
    told = str(msgspec.structs.replace(found, points=points))
    assert "best generated_tokens_per_s" in told
    assert "ttft" not in told


@pytest.mark.parametrize(
    ("axis", "labels"),
    [({"max_active": [None, 4]}, ["None", "4"]),
     ({"tenant_weights": [{"a": 1.0}, {"a": 2.0}]}, ["{'a': 1.0}", "{'a': 2.0}"]),
     ({"prompt_tokens": [4, (2, 9)]}, ["4", "(2, 9)"]), ({"max_active": [4, 4]}, ["4"])],
)  # fmt: skip
def test_a_table_has_any_values_on_its_axes(axis: dict[str, Any], labels: list[str]) -> None:
    (drawn,) = swept(axis | {"max_num_seqs": [1, 8]}, rounds=1).plot().plotly["data"]
    assert (drawn["y"], drawn["x"]) == (labels, ["1", "8"])


def test_one_round_ranks_nothing() -> None:
    found = swept({"max_num_seqs": [1, 8]}, rounds=1)
    assert found.best().single is None
    assert "one round distinguishes nothing" in str(found)


def test_rounds_go_to_and_fro_on_arrivals_of_their_own() -> None:
    sizes: list[int] = []
    load = Workload(concurrency=1, requests=1, prompt_tokens=(1, 4000), max_tokens=1)
    swept(
        {"max_num_seqs": [1, 2, 3]}, load, rounds=2, warmup=False,
        heard=lambda e: sizes.append(e.prompt_tokens) if isinstance(e, Submitted) else None,
    )
    assert len(set(sizes[:3])) == len(set(sizes[3:])) == 1
    assert sizes[0] != sizes[3]


def test_a_stopped_sweep_goes_on_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    grid = {"max_num_seqs": [1, 2, 4]}
    clock = VirtualClock()
    submitted: list[Event] = []

    def hear(event: Event) -> None:
        if isinstance(event, Submitted):
            submitted.append(event)

    async def stopped(service: Service, bus: EventBus) -> Sweep:
        job = Sweeping(here(service, bus), grid, LOAD, rounds=2, warmup=False, path=path)

        def stop(event: Event) -> None:
            if isinstance(event, Submitted) and len(submitted) == 2 * 16 + 5:
                job.stop()

        bus.attach(hear)
        bus.attach(stop)
        return await job.run()

    async def main() -> Sweep:
        async with simulated(clock) as (service, bus):
            return await stopped(service, bus)

    first = clock.run(main())
    assert (first.interrupted, [len(p.runs) for p in first.points]) == (True, [1, 1, 0])
    path.write_bytes(path.read_bytes() + b'{"type":"Kept","values":{"max')  # killed while writing
    submitted.clear()
    again = swept(grid, rounds=2, warmup=False, path=path, heard=hear)
    assert [len(p.runs) for p in again.points] == [2, 2, 2]
    assert len(submitted) == 4 * 16, "two runs of six were there already"
    submitted.clear()
    assert swept(grid, rounds=2, warmup=False, path=path, heard=hear) == again
    assert not submitted


def test_a_file_is_gone_on_from_whole_where_nothing_more_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    found = swept({"max_num_seqs": [1, 2]}, rounds=1, path=path)
    whole = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))  # as of a disk that is full
    try:
        assert swept({"max_num_seqs": [1, 2]}, rounds=1, path=path) == found
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("cut", [1, 2, 50])
def test_a_file_that_was_cut_anywhere_is_gone_on_from(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    swept({"max_num_seqs": [1, 2]}, rounds=1, path=path)
    path.write_bytes(path.read_bytes()[:-cut])
    for _ in range(2):
        found = swept({"max_num_seqs": [1, 2]}, rounds=1, path=path)
        assert [len(point.runs) for point in found.points] == [1, 1]
        assert path.read_bytes().count(b"\n") == 3
    header = path.read_bytes().partition(b"\n")[0]
    path.write_bytes(header)
    assert swept({"max_num_seqs": [1, 2]}, rounds=1, path=path).n == 2 * 16
    assert path.read_bytes().count(b"\n") == 3


def test_a_file_of_another_sweep_is_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    swept({"max_num_seqs": [1]}, rounds=1, path=path)
    with pytest.raises(ValueError, match="another workload or server"):
        swept({"max_num_seqs": [1]}, Workload(concurrency=2), rounds=1, path=path)
    path.write_text("shopping list\n")
    with pytest.raises(ValueError, match="holds no sweep"):
        swept({"max_num_seqs": [1]}, rounds=1, path=path)
    assert path.read_text() == "shopping list\n"


def test_a_file_of_other_knobs_is_not_mixed_in_but_more_values_are_added(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    swept({"max_num_seqs": [1]}, rounds=1, path=path)
    clock = VirtualClock()

    async def main() -> Sweep:
        async with simulated(clock) as (service, bus):
            await service.set_knobs({"max_num_batched_tokens": 64}, source="test")
            stage = here(service, bus)
            return await Sweeping(stage, {"max_num_seqs": [1]}, LOAD, rounds=1, path=path).run()

    with pytest.raises(ValueError, match="with other knobs; name another file"):
        clock.run(main())
    runs: list[Event] = []
    found = swept(
        {"max_num_seqs": [1, 2]}, rounds=1, path=path, warmup=False,
        heard=lambda e: runs.append(e) if isinstance(e, Submitted) else None,
    )  # fmt: skip
    assert [len(p.runs) for p in found.points] == [1, 1]
    assert len(runs) == LOAD.requests, "one of the two was there already"


@pytest.mark.parametrize(
    ("grid", "words"),
    [({}, "an axis"), ({"max_num_seqs": []}, "no values"), ({"speed": [1]}, "speed"),
     ({"max_num_seqs": [0]}, "max_num_seqs"), ({"rate": [-1]}, "rate")],
)  # fmt: skip
def test_a_wrong_grid_is_refused_before_anything_runs(grid: dict[str, Any], words: str) -> None:
    heard: list[Event] = []
    with pytest.raises((ValueError, KnobError), match=words):
        swept(grid, heard=lambda e: heard.append(e) if isinstance(e, Submitted) else None)
    assert not heard


def test_a_sweep_shows_everywhere_and_comes_back_from_json() -> None:
    found = swept({"max_num_seqs": [1, 8], "policy": ["fifo", "priority"]}, rounds=2)
    for text in (str(found), found._repr_html_(), found.to_markdown()):
        assert "4 of 4 points, 2 rounds each" in text
    frame = found.to_frame()
    assert len(frame) == 4
    assert frame["ttft_p95_low"].notna().all()
    assert Sweep.from_json(found.to_json()) == found
    for figure in (found.curve(), found.plot("ttft_mean"), found.plot()):
        assert figure.svg.startswith("<svg")
    line = swept({"max_num_seqs": [1, 8]}, rounds=2).plot("ttft_mean").plotly["data"]
    assert [trace["name"] for trace in line] == ["mean", "95 % low", "95 % high"]


def test_the_live_plot_gains_a_point_with_every_run_and_names_it() -> None:
    clock, drawn = VirtualClock(), list[LiveFigure]()

    async def main() -> None:
        async with simulated(clock) as (service, bus):
            job = Sweeping(here(service, bus), {"concurrency": [1, 2, 4]}, LOAD, rounds=1)
            watch = redrawing(job, drawn.append)

            def hear(event: Event) -> None:
                if isinstance(event, Submitted):
                    watch()

            bus.attach(hear)
            await job.run()
            watch()

    clock.run(main())
    assert [one.svg.count("<circle") for one in drawn] == [1, 2, 3]
    assert "concurrency=4</text>" in drawn[-1].svg


def test_combinations_vary_the_last_axis_fastest() -> None:
    assert combinations({"a": [1, 2], "b": [3, 4]}) == [
        {"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}
    ]
