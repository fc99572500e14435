"""A calibration finds back what a simulated engine costs, and a simulation with it does as it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmserve
from llmserve.bench.load.workload import Workload
from llmserve.core.knobs import KnobError, Knobs
from llmserve.core.types import StepRecord
from llmserve.engines.simulator.setup import SimulatorSetup
from llmserve.engines.simulator.step_model import (
    COUNTS,
    RANKS,
    Spread,
    StepTerm,
    StepTimeModel,
    StepWork,
)
from llmserve.lab import Run, run_virtual, simulate
from llmserve.lab.calibration.calibration import Calibration
from llmserve.lab.calibration.fit import nonnegative
from llmserve.lab.calibration.observed_steps import ObservedSteps
from llmserve.lab.calibration.valid_range import CalibrationError, StartLimits
from support.examples import examples

LOAD = Workload(rate=40, requests=150, prompt_tokens=(4, 300), max_tokens=(1, 60), seed=3)
OTHER = Workload(concurrency=6, requests=80, prompt_tokens=(4, 300), max_tokens=(1, 60), seed=9)
OPEN = Workload(rate=25, requests=80, prompt_tokens=(4, 300), max_tokens=(1, 60), seed=9)
TERMS = (
    StepTerm("step", 0.004), StepTerm("prefill", 0.002), StepTerm("decode_row", 2e-4),
    StepTerm("prefill_token", 5e-5), StepTerm("kv_token", 1e-6),
)  # fmt: skip


def of(run: Run, **options: Any) -> Calibration:
    limits = StartLimits.of(SimulatorSetup(**options).info())
    return Calibration.of(
        [(run.records, run.rows)], model_id="simulator", engine="simulator", limits=limits
    )


def calibrated(**options: Any) -> Calibration:
    return of(run_virtual(LOAD, **options), **options)


def check_times(found: Calibration, true: Callable[[StepWork], float]) -> None:
    """Of every sort of step within the range."""
    for rows in (0, 1, 5):
        for tokens in (0, 7, 200):
            if rows or tokens:
                work = StepWork(rows, int(tokens > 0), tokens, rows * 50 + tokens, tokens * tokens)
                assert found.steps.seconds(work) == pytest.approx(true(work), rel=1e-6), work


costs = st.floats(0.1, 50).map(lambda ms: round(ms, 3))


@given(
    prefill_ms=costs, decode_ms=costs, prefill_token_ms=st.sampled_from([0, 0.05, 0.3]),
    decode_token_ms=st.sampled_from([0, 0.1, 1]),
)  # fmt: skip
@settings(max_examples=examples(15))
def test_the_costs_of_a_simulated_engine_are_found_back_exactly(**ms: Any) -> None:
    found = calibrated(**ms)

    def true(work: StepWork) -> float:
        total: float = work.prefill_tokens * ms["prefill_token_ms"]
        total += work.decode_rows * ms["decode_token_ms"]
        total += ms["prefill_ms"] * (work.prefill_tokens > 0)
        total += ms["decode_ms"] * (work.decode_rows > 0)
        return total / 1e3

    check_times(found, true)
    assert found.steps.decodes == found.steps.prefills == Spread()
    assert found.front.delivery_s == pytest.approx(0, abs=1e-9)
    assert found.front.arrival_s == pytest.approx(0, abs=1e-9)
    # in a closed loop of round costs, who comes first hangs on a time's last bit
    again, told = found.simulate(OPEN, progress=False), simulate(OPEN, progress=False, **ms)
    assert again.steps == told.steps
    assert again.makespan_s == pytest.approx(told.makespan_s, rel=1e-5)
    assert again.report.ttft.p95 == pytest.approx(told.report.ttft.p95, rel=1e-4)


@pytest.mark.parametrize(
    "shape",
    [
        StepTerm("row_block", 0.003, at=32), StepTerm("first_decode_row", 0.001, at=4),
        StepTerm("graph_row", 3e-4), StepTerm("prefill_row", 0.002), StepTerm("pair", 1e-6),
    ],
    ids=lambda term: term.name,
)  # fmt: skip
def test_what_an_engines_shape_asks_for_is_found_among_the_terms(shape: StepTerm) -> None:
    true = StepTimeModel((*TERMS, shape))
    found = calibrated(times=true)
    check_times(found, true.seconds)
    assert shape.name in {term.name for term in found.steps.terms}


def test_tails_are_simulated_and_not_only_means() -> None:
    options: dict[str, Any] = {"decode_ms": 10, "prefill_ms": 20, "jitter": 0.3, "seed": 4}
    long = Workload(rate=8, requests=300, prompt_tokens=(4, 300), max_tokens=(1, 60), seed=3)
    found = of(run_virtual(long, **options), **options)
    low, middle, high = (found.steps.decodes.quantiles[RANKS.index(r)] for r in (0.1, 0.5, 0.9))
    assert (high - low) / middle == pytest.approx(2 * 1.2816 * 0.3, rel=0.1)
    told = simulate(OTHER, progress=False, **options).report
    again = found.simulate(OTHER, progress=False, seed=1).report
    assert again.itl.p95 == pytest.approx(told.itl.p95, rel=0.1)
    assert again.itl.mean == pytest.approx(told.itl.mean, rel=0.05)
    assert again.generated_tokens_per_s == pytest.approx(told.generated_tokens_per_s, rel=0.05)


def test_neighbours_that_are_slow_together_are_found_and_simulated() -> None:
    spread = Spread(tuple(0.7 + 0.6 * rank for rank in RANKS))
    true = StepTimeModel(TERMS, spread, spread, correlation=0.8)
    found = calibrated(times=true)
    assert found.steps.correlation == pytest.approx(0.8, abs=0.1)
    assert calibrated(times=StepTimeModel(TERMS, spread, spread)).steps.correlation < 0.15


def test_outliers_leave_the_typical_step_as_it_is_and_the_mean_holds_them() -> None:
    run = run_virtual(LOAD)
    records = [slow(record) if record.index % 50 == 7 else record for record in run.records]
    found = Calibration.of(
        [(gapless(records), run.rows)], model_id="simulator", engine="simulator",
        limits=StartLimits.of(SimulatorSetup().info()),
    )  # fmt: skip
    assert found.steps.seconds(StepWork(decode_rows=3, kv_tokens=90)) == pytest.approx(0.01)
    assert found.steps.decodes.mean > 1.2
    assert abs(found.report.bias) < 0.01


def slow(record: StepRecord) -> StepRecord:
    import msgspec

    return msgspec.structs.replace(record, duration_s=record.duration_s * 20)


def gapless(records: list[StepRecord]) -> list[StepRecord]:
    """Each step begins where the one before it ends."""
    import msgspec

    found, now = list[StepRecord](), 0.0
    for record in records:
        found.append(msgspec.structs.replace(record, start_s=now))
        now += record.duration_s
    return found


def test_the_fronts_own_costs_are_found_and_simulated() -> None:
    options: dict[str, Any] = {"decode_ms": 10, "dispatch_ms": 2, "delivery_ms": 3}
    quiet = Workload(rate=3, requests=60, prompt_tokens=16, max_tokens=8)
    found = of(run_virtual(quiet, **options), **options)
    assert found.front.dispatch_s == pytest.approx(0.002, abs=1e-6)
    assert found.front.delivery_s == pytest.approx(0.003, abs=1e-6)
    told, again = simulate(quiet, progress=False, **options), found.simulate(quiet, progress=False)
    assert again.report.ttft.p50 == pytest.approx(told.report.ttft.p50, rel=1e-3)


@given(st.integers(0, 2**32))
@settings(max_examples=examples(50))
def test_a_solution_is_never_below_zero_and_none_near_it_fits_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(30, 5)), rng.normal(size=30)
    a[:, 4] = a[:, 3]  # two that cannot be told apart
    x = nonnegative(a, b)
    assert (x >= 0).all()
    slope = a.T @ (a @ x - b)
    assert (slope >= -1e-6).all(), "one more of a term would fit better"
    assert np.abs(slope[x > 1e-9]).max(initial=0) < 1e-6, "another amount would fit better"


@given(st.tuples(*[st.integers(0, 600)] * 5), st.tuples(*[st.integers(0, 200)] * 5))
def test_more_work_never_takes_less_time(work: tuple[int, ...], more: tuple[int, ...]) -> None:
    model = StepTimeModel(tuple(StepTerm(name, 0.001, at=7) for name in COUNTS))
    larger = StepWork(*(a + b for a, b in zip(work, more, strict=True)))
    assert model.seconds(larger) >= model.seconds(StepWork(*work))


def test_contexts_are_told_from_the_tape_through_caches_and_preemptions() -> None:
    shared = Workload(
        rate=60, requests=80, prompt_tokens=100, prefix_tokens=70, prefix_groups=2,
        max_tokens=(1, 40), seed=2,
    )  # fmt: skip
    times = StepTimeModel(TERMS)
    run = run_virtual(shared, {"max_num_seqs": 8}, kv_capacity_tokens=600, times=times)
    assert sum(len(record.preempted) for record in run.records) > 0
    assert sum(record.cached_tokens for record in run.records) > 0
    seen = ObservedSteps()
    seen.extend(run.records, run.rows)
    assert len(seen.works) > 0.5 * len(run.records)
    for work, seconds in zip(seen.works, seen.seconds, strict=True):
        assert times.seconds(work) == pytest.approx(seconds, rel=1e-6)


def test_it_is_saved_as_json_and_read_again(tmp_path: Path) -> None:
    found = calibrated(jitter=0.2)
    found.save(tmp_path / "model.json")
    read = Calibration.load(tmp_path / "model.json")
    assert read == found
    assert (
        read.simulate(OTHER, progress=False).report == found.simulate(OTHER, progress=False).report
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["steps"]["terms"][0].update(seconds=-1.0), "seconds of"),
        (lambda d: d["steps"]["terms"][0].update(name="stp"), "did you mean step?"),
        (lambda d: d["steps"].update(correlation=1.5), "correlation must be within 0 and 1"),
        (lambda d: d["steps"]["decodes"].update(quantiles=[1.0, 2.0]), "has 31 quantiles or none"),
        (lambda d: d["front"].update(delivery_s=-0.1), "delivery_s must be within 0"),
        (lambda d: d["limits"].update(block_size=0), "block_size must be within 1"),
        (lambda d: d["valid"].update(steps=-3), "steps must be within 0"),
        (lambda d: d.update(version=99), "it is of version 99, and this package reads 1"),
        (lambda d: d.update(knobs={"max_num_seqs": 0}), "max_num_seqs"),
        (lambda d: d.pop("steps"), "missing required field"),
    ],
)
def test_a_file_with_a_wrong_number_says_which(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    path = tmp_path / "model.json"
    calibrated().save(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(CalibrationError, match="holds no calibration") as caught:
        Calibration.load(path)
    assert said in str(caught.value)


def test_what_is_not_modelled_is_refused_by_name() -> None:
    found = calibrated(max_num_seqs_ceiling=64)
    for name in ("dtype", "kv_capacity_tokens", "max_num_seq", "stream_interval_ms"):
        with pytest.raises(CalibrationError, match=f"{name} is not modelled") as caught:
            found.check({name: 1})
        assert caught.value.name == name
    with pytest.raises(CalibrationError, match="leaves the range that was measured"):
        found.simulate(OTHER, {"max_num_seqs": 60})
    with pytest.raises(CalibrationError, match="above what the server was started for"):
        found.simulate(OTHER, changes=[(0.1, {"max_num_seqs": 65})])
    with pytest.raises(KnobError, match="policy"):
        found.check({"policy": "lifo"})
    found.check({"max_num_seqs": 2, "policy": "fair_share", "queue_max": 5})


def test_a_tape_that_tells_too_little_is_refused() -> None:
    run = run_virtual(Workload(rate=10, requests=2, max_tokens=3))
    with pytest.raises(CalibrationError, match="50 are needed"):
        of(run)


def test_a_session_is_calibrated_by_a_short_load_of_its_own(tmp_path: Path) -> None:
    with llmserve.serve(
        engine="simulator", port=0, prefill_ms=2, decode_ms=1, max_num_seqs=4
    ) as session:
        before = session.knobs
        found = session.calibrate(budget_s=2, max_num_seqs=6, progress=False)
        assert session.knobs == before
        assert "clients" in found.ran
        assert found.valid.decode_rows >= 5
        assert found.engine == "simulator"
        assert found.versions["llmserve"]
        with session.trace(tmp_path / "trace.jsonl"):
            session.bench(concurrency=3, requests=30, max_tokens=20, repeats=1, progress=False)
        shown, page = repr(found), found._repr_html_()
    for word in ("between steps", "valid for", "a step's end to delivery"):
        assert word in shown
        assert word.replace("'", "&#x27;") in page
    assert "<svg" in page
    traced = Calibration.from_trace(tmp_path / "trace.jsonl")
    assert traced.engine == "simulator"
    assert traced.valid.decode_rows <= 3
    assert traced.knobs == before.as_dict() != Knobs().as_dict()
