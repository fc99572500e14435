from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmserve.observe.samples import Samples, Summary


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
