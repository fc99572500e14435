from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmserve.observe.window import Samples, Summary, between


@given(capacity=st.integers(1, 3000), count=st.integers(0, 5000))
def test_the_newest_rows_up_to_the_capacity_are_kept(capacity: int, count: int) -> None:
    samples = Samples(2, capacity)
    for index in range(count):
        samples.append(index, -index)
    kept = samples.window(-1, count)
    newest = range(max(0, count - capacity), count)
    assert sorted(kept[:, 0]) == list(newest)
    assert len(samples) == len(newest)
    assert np.array_equal(kept[:, 1], -kept[:, 0])
    assert samples.oldest() == (newest[0] if count > capacity else None)


def test_a_window_excludes_its_beginning_and_includes_its_end() -> None:
    samples = Samples(1, 10)
    for t in (1, 2, 3, 4):
        samples.append(t)
    assert sorted(samples.window(1, 3)[:, 0]) == [2, 3]


def test_rows_without_a_figure_do_not_count() -> None:
    assert Summary.of(np.array([1.0, np.nan, 3.0])) == Summary(
        n=2, mean=2.0, p50=2.0, p90=2.8, p95=2.9, p99=2.98
    )
    assert Summary.of(np.array([np.nan])) == Summary()


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400))
def test_percentiles_are_those_of_numpy(values: list[float]) -> None:
    found = Summary.of(np.array(values))
    told = np.array([found.p50, found.p90, found.p95, found.p99])
    assert np.allclose(told, np.percentile(values, (50, 90, 95, 99)), rtol=1e-12, atol=1e-9)


@given(
    late=st.lists(st.integers(0, 40), min_size=1, max_size=300),
    rounds=st.integers(1, 12),
    after=st.integers(-50, 3700),
    length=st.integers(0, 800),
    looks=st.integers(1, 500),
)
def test_a_window_finds_all_its_rows_however_late_they_came_and_however_often_it_was_read(
    late: list[int], rounds: int, after: int, length: int, looks: int
) -> None:
    samples = Samples(2, 1024)
    times: list[int] = []
    for number, lateness in enumerate(late * rounds):
        samples.append(number - lateness, number)
        times.append(number - lateness)
        if number % looks == 0:
            samples.window(after, after + length)
    wanted = [
        number
        for number, t in list(enumerate(times))[-1024:]
        if after < t <= after + length
    ]
    assert sorted(samples.window(after, after + length)[:, 1]) == wanted


def test_a_window_stays_as_it_was_while_rows_come() -> None:
    samples = Samples(1, 256)
    for t in range(256):
        samples.append(t)
    kept = samples.window(-1, 300)
    for t in range(256):
        samples.append(-t)
    assert list(kept[:, 0]) == list(range(256))


def test_rows_in_order_are_a_view_and_others_are_picked() -> None:
    rows = np.array([[1.0], [2.0], [3.0], [9.0]])
    assert between(rows, 1, 3).base is rows
    assert list(between(rows[[0, 3, 1]], 0, 2)[:, 0]) == [1, 2]
    assert not len(between(rows, 4, 5))
