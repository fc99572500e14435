"""Arrivals are pure and seeded."""

from __future__ import annotations

import statistics
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.bench.load.workload import Workload


@given(seed=st.integers(), rate=st.floats(0.1, 100))
def test_the_same_workload_gives_the_same_arrivals(seed: int, rate: float) -> None:
    workload = Workload(rate=rate, requests=20, prompt_tokens=(1, 99), seed=seed)
    assert list(workload.arrivals()) == list(workload.arrivals())


def test_another_seed_gives_other_arrivals() -> None:
    one, two = (list(Workload(rate=1, requests=5, seed=seed).arrivals()) for seed in (1, 2))
    assert one != two
    assert {a.salt for a in one}.isdisjoint(a.salt for a in two)


def test_another_rate_meets_the_same_requests() -> None:
    slow, fast = (
        list(Workload(rate=rate, requests=50, prompt_tokens=(1, 99)).arrivals()) for rate in (1, 9)
    )
    assert [(a.prompt_tokens, a.salt) for a in slow] == [(a.prompt_tokens, a.salt) for a in fast]
    assert slow[-1].at_s > fast[-1].at_s


def test_poisson_arrivals_have_the_rate_and_the_spread_of_poisson() -> None:
    times = [a.at_s for a in Workload(rate=20, requests=5000).arrivals()]
    gaps = [after - before for before, after in pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 20, rel=0.05), "deviation equals the mean"


def test_constant_arrivals_are_evenly_spaced_from_zero() -> None:
    arrivals = Workload(rate=4, process="constant", duration_s=1).arrivals()
    assert [a.at_s for a in arrivals] == [0, 0.25, 0.5, 0.75]


def test_an_open_loop_ends_by_duration_or_requests_whichever_is_first() -> None:
    assert len(list(Workload(rate=10, process="constant", duration_s=2).arrivals())) == 20
    few = Workload(rate=10, process="constant", duration_s=2, requests=7)
    assert len(list(few.arrivals())) == 7
    assert Workload(rate=10).limit_s == 10
    assert Workload(rate=10, requests=7).limit_s is None


def test_a_closed_loop_has_places_and_makes_four_rounds_unless_told() -> None:
    assert (Workload().clients, Workload().limit) == (8, 32)
    assert len(list(Workload(concurrency=3).arrivals())) == 12
    assert Workload(concurrency=3, requests=5).limit == 5
    endless = Workload(concurrency=3, duration_s=1)
    assert len(list(islice(endless.arrivals(), 1000))) == 1000, "time ends it, not a count"


def test_lengths_are_fixed_or_uniform_over_both_ends() -> None:
    arrivals = list(Workload(requests=500, prompt_tokens=(3, 5), max_tokens=7).arrivals())
    assert {a.prompt_tokens for a in arrivals} == {3, 4, 5}
    assert {a.max_tokens for a in arrivals} == {7}


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"rate": 1, "concurrency": 1}, "not both"),
        ({"rate": 0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"concurrency": -1}, "concurrency"),
        ({"duration_s": float("inf")}, "duration_s"),
        ({"prompt_tokens": 0}, "prompt_tokens"),
        ({"max_tokens": (5, 4)}, "max_tokens"),
        ({"rate": 1, "process": "bursts"}, "process"),
        ({"process": "gamma"}, "give rate"),
        ({"rate": 1, "process": "ramp"}, "rate_to"),
        ({"rate": 1, "rate_to": 2}, "rate_to"),
        ({"rate": 1, "burstiness": 0}, "burstiness"),
        ({"prompt_tokens": 8, "prefix_tokens": 8}, "prefix_tokens"),
        ({"turns": 0}, "turns"),
        ({"mix": "shrot:1"}, "shrot"),
        ({"mix": "short:many"}, "weight of 'short'"),
        ({"mix": ""}, "at least one"),
        ({"concurrency": 2.5}, "concurrency"),
        ({"requests": 8.0}, "requests"),
        ({"prompt_tokens": 2.5}, "prompt_tokens"),
        ({"max_tokens": (1.5, 3)}, "max_tokens"),
        ({"turns": (1, 2, 3)}, "turns"),
    ],
)
def test_nonsense_is_refused_by_name(wrong: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Workload(**wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_a_workload_says_what_it_is() -> None:
    text = str(Workload(rate=20, duration_s=30, prompt_tokens=(10, 20)))
    assert text == "open loop, 20 requests/s (poisson), 30 s, 10–20 tokens in, 64 out, seed 0"
