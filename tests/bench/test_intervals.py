"""How far means of few are trusted, against textbook tables and by simulation."""

from __future__ import annotations

import random

import numpy as np
import pytest

from llmserve.bench.results.intervals import interval, t_quantile, t_within


@pytest.mark.parametrize(
    ("freedom", "table"), [(1, 12.706), (2, 4.3027), (3, 3.1824), (5, 2.5706), (30, 2.0423)]
)
def test_t_is_that_of_the_tables(freedom: int, table: float) -> None:
    assert t_quantile(0.95, freedom) == pytest.approx(table, abs=1e-3)
    assert t_within(table, freedom) == pytest.approx(0.95, abs=1e-4)
    assert t_quantile(0.99, 5) == pytest.approx(4.0321, abs=1e-3)


def test_an_interval_of_three_repeats_holds_the_truth_as_often_as_it_says() -> None:
    """And a percentile bootstrap, the usual choice, does not: why it is not used here. As 1 of 27
    resamples is the lowest value alone, its 2.5 % and 97.5 % are the extremes of the three."""
    rng = random.Random(7)
    trials, held, bootstrap = 4000, 0, 0
    picks = np.array(np.meshgrid(*[range(3)] * 3)).reshape(3, -1)  # all 27 resamples
    for _ in range(trials):
        values = [rng.gauss(10, 2) for _ in range(3)]
        found = interval(values)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 10 <= found.high
        means = np.array(values)[picks].mean(axis=0)
        low, high = np.percentile(means, (2.5, 97.5), method="inverted_cdf")
        bootstrap += low <= 10 <= high
    assert held / trials == pytest.approx(0.95, abs=0.012)
    assert bootstrap / trials == pytest.approx(0.75, abs=0.02)


def test_one_value_has_no_interval_and_equal_ones_have_one_of_no_width() -> None:
    assert interval([]) is None
    one, same = interval([5.0]), interval([0.1, 0.1, 0.1])
    assert one is not None
    assert (one.low, one.high, one.excludes_zero) == (None, None, False)
    assert same is not None
    assert (same.half, same.excludes_zero) == (0.0, True)
    nothing = interval([0.0, 0.0])
    assert nothing is not None
    assert not nothing.excludes_zero
