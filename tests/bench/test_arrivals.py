"""Shapes of traffic: how many come, when, and how unevenly."""

from __future__ import annotations

import random
import statistics
from itertools import islice, pairwise

import pytest

from llmserve.bench.load.arrivals import CHANGING, PROCESSES, Process, Shape
from llmserve.bench.load.workload import Workload


def times(process: Process, **fields: object) -> list[float]:
    load = Workload(rate=20, process=process, **fields)  # type: ignore[arg-type]  # by name
    return [a.at_s for a in load.arrivals()]


def between(at: list[float], start: float, end: float) -> int:
    return sum(start <= t < end for t in at)


def test_gamma_arrivals_have_the_rate_and_come_in_bursts() -> None:
    gaps = [b - a for a, b in pairwise(times("gamma", requests=8000, burstiness=0.25))]
    assert statistics.mean(gaps) == pytest.approx(1 / 20, rel=0.06)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(2, rel=0.06), "1/√¼"


def test_a_ramp_goes_evenly_from_one_rate_to_the_other() -> None:
    at = times("ramp", rate_to=180, duration_s=100)
    assert len(at) == pytest.approx(100 * 100, rel=0.03)
    for start in (0, 40, 80):
        middle = 20 + 160 * (start + 10) / 100
        assert between(at, start, start + 20) == pytest.approx(20 * middle, rel=0.12)


def test_a_step_comes_half_way() -> None:
    at = times("step", rate_to=200, duration_s=40)
    assert between(at, 0, 20) == pytest.approx(20 * 20, rel=0.12)
    assert between(at, 20, 40) == pytest.approx(20 * 200, rel=0.06)


def test_a_day_has_its_noon_in_the_middle_and_begins_again() -> None:
    at = times("sine", rate_to=180, duration_s=200, period_s=100)
    assert between(at, 0, 100) == pytest.approx(100 * 100, rel=0.03)
    assert between(at, 45, 55) == pytest.approx(10 * 180, rel=0.1)
    assert between(at, 95, 105) == pytest.approx(10 * 20, rel=0.2)
    assert between(at, 145, 155) == pytest.approx(10 * 180, rel=0.1)


@pytest.mark.parametrize("process", CHANGING)
def test_a_rate_that_does_not_change_is_plain_poisson(process: Process) -> None:
    """The gaps are the same draws, spent at the rate of the moment."""
    shape = Shape(process, 5, 5, 60, 1)
    plain = islice(Shape("poisson", 5, 5, 60, 1).times(random.Random(3)), 200)
    assert list(islice(shape.times(random.Random(3)), 200)) == pytest.approx(list(plain))


@pytest.mark.parametrize("process", PROCESSES)
def test_what_is_expected_is_what_comes_and_times_never_go_back(process: Process) -> None:
    shape = Shape(process, 20, 60 if process in CHANGING else 20, 100, 0.5)
    for within_s in (30, 100, 250):
        came = []
        for t in shape.times(random.Random(1)):
            if t >= within_s:
                break
            came.append(t)
        assert came == sorted(came)
        assert len(came) == pytest.approx(shape.expected(within_s), rel=0.12)


def test_a_shape_that_goes_down_is_allowed() -> None:
    at = [a.at_s for a in Workload(rate=90, rate_to=10, process="ramp", duration_s=40).arrivals()]
    assert between(at, 0, 20) > 2 * between(at, 20, 40)
