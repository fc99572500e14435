"""Predictions of a calibrated session: never without their error, and refused where it is large."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import llmserve
from lab.what_if.test_errors import held_out
from llmserve.bench.load.workload import Workload
from llmserve.core.events import Event, Submitted
from llmserve.entrypoints.session.session import Session
from llmserve.lab.calibration.calibration import Calibration
from llmserve.lab.calibration.valid_range import CalibrationError
from llmserve.lab.what_if.errors import FIGURES, HeldOutErrors
from llmserve.lab.what_if.prediction import UNKNOWN, NotRecommended

LOAD = Workload(concurrency=4, requests=24, prompt_tokens=(8, 32), max_tokens=(4, 16))


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with llmserve.serve(engine="simulator", max_num_seqs=8) as one:
        yield one


@pytest.fixture(scope="module")
def model(session: Session) -> Calibration:
    return session.calibrate(budget_s=3, progress=False)


@pytest.fixture(scope="module")
def validated(session: Session, model: Calibration) -> Calibration:
    return session.validate(model, budget_s=4, slo="ttft:500", progress=False)


def trusted(model: Calibration) -> Calibration:
    seen = (held_out(1.0, [1.0, 1.0]), held_out(1.0, [1.0, 1.0], "closed loop", "closed"))
    return msgspec.structs.replace(model, errors=HeldOutErrors(held_out=seen))


def test_a_prediction_without_held_out_traffic_says_how_to_measure_its_error(
    model: Calibration,
) -> None:
    found = model.what_if(LOAD, {"max_num_seqs": 2})
    assert found.report.n == 24
    assert [found.error(name) for name in FIGURES] == [UNKNOWN] * len(FIGURES)
    assert str(found).count(UNKNOWN) >= 5
    assert UNKNOWN in found._repr_html_()
    with pytest.raises(NotRecommended, match="error unknown"):
        found.recommend()


def test_a_prediction_within_its_targets_gives_the_knobs(model: Calibration) -> None:
    found = trusted(model).what_if(LOAD, {"max_num_seqs": 2})
    assert found.doubts == ()
    assert found.recommend() == {"max_num_seqs": 2}
    assert "<svg" in found._repr_html_()


def test_an_error_beyond_its_target_is_not_recommended(model: Calibration) -> None:
    seen = (held_out(1.5, [1.0, 1.0], "closed loop", "closed"),)
    off = msgspec.structs.replace(model, errors=HeldOutErrors(held_out=seen))
    with pytest.raises(NotRecommended, match="calibrate anew"):
        off.what_if(LOAD).recommend()


def test_a_load_beyond_the_measured_range_is_not_recommended(model: Calibration) -> None:
    small = msgspec.structs.replace(model.valid, kv_tokens=16)
    narrow = msgspec.structs.replace(trusted(model), valid=small)
    with pytest.raises(NotRecommended, match="leaves the calibrated range"):
        narrow.what_if(LOAD).recommend()


def test_what_is_not_simulated_is_refused_by_name(model: Calibration) -> None:
    with pytest.raises(ValueError, match="replicas must be 1"):
        model.what_if(LOAD, replicas=2)
    with pytest.raises(CalibrationError, match="dtype is not modelled"):
        model.what_if(LOAD, {"dtype": "int8"})


def test_a_recorded_trace_is_asked_about_by_its_file(model: Calibration, tmp_path: Path) -> None:
    trace = tmp_path / "azure.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,37,4\n"
        "2023-11-16 18:17:04.03,39,9\n"
    )
    found = model.what_if(trace, policy="priority")
    assert (found.report.n, found.policy, found.loop) == (2, "priority", "open")
    assert found.report.generated_tokens == 13


def test_held_out_loads_run_twice_on_identical_arrivals_and_knobs_come_back(
    session: Session, model: Calibration
) -> None:
    sent: list[Submitted] = []

    def keep(event: Event) -> None:
        if isinstance(event, Submitted):
            sent.append(event)

    load = Workload(rate=200, requests=30, prompt_tokens=(8, 32), max_tokens=(2, 6))
    session.bus.attach(keep)
    try:
        found = session.validate(model, [load], knobs={"max_num_seqs": 3}, progress=False)
    finally:
        session.bus.detach(keep)
    lengths = [(event.prompt_tokens, event.max_tokens) for event in sent[-60:]]
    assert lengths[:30] == lengths[30:]
    assert len(set(lengths)) > 10
    assert session.knobs.max_num_seqs == 8
    assert found.errors is not None
    assert found.errors.knobs == {"max_num_seqs": 3}
    assert len(found.errors.held_out[0].live) == 2


def test_validating_measures_capacity_and_three_shares_of_it(validated: Calibration) -> None:
    errors = validated.errors
    assert errors is not None
    assert [each.name for each in errors.held_out] == ["closed loop", "40%", "70%", "95%"]
    assert [each.loop for each in errors.held_out] == ["closed", "open", "open", "open"]
    assert errors.capacity_tokens_per_s is not None
    assert all(each.steps_error is not None for each in errors.held_out)
    assert errors.of("goodput_per_s") is not None
    assert "MAPE" in validated.what_if(LOAD).error("ttft_p95")


def test_errors_are_kept_with_the_calibration(validated: Calibration, tmp_path: Path) -> None:
    validated.save(tmp_path / "model.json")
    assert Calibration.load(tmp_path / "model.json").errors == validated.errors


def test_a_prediction_is_held_against_what_was_then_run(
    session: Session, validated: Calibration
) -> None:
    found = validated.what_if(LOAD).against(session.bench(LOAD, repeats=2, progress=False))
    assert found.of("generated_tokens_per_s") is not None
    assert "predicted, then run" in str(found)


def test_a_calibration_of_another_engine_is_not_validated(
    session: Session, model: Calibration
) -> None:
    with pytest.raises(CalibrationError, match="calibrate this one"):
        session.validate(msgspec.structs.replace(model, engine="torch"), progress=False)
