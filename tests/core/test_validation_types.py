"""What cells count in: numpy's and pandas' numbers, wherever a user may write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import llmserve
from llmserve.core.knobs import KnobError, coerce
from llmserve.core.validation import plain


def test_numbers_arrays_columns_and_ranges_become_pythons_own() -> None:
    told = (np.int64(3), [np.float32(0.5), "a"], range(2), {np.int8(1): np.array([1, 2])})
    assert plain(told) == (3, [0.5, "a"], [0, 1], {1: [1, 2]})
    assert plain(pd.Series([1, 2])) == [1, 2]
    assert type(plain(np.int64(3))) is int


def test_a_knob_takes_any_real_number_and_no_truth_or_array() -> None:
    assert coerce("max_num_seqs", np.int64(8)) == 8
    assert type(coerce("max_num_seqs", np.int64(8))) is int
    assert coerce("queue_timeout_s", np.float32(0.5)) == 0.5
    for wrong in (np.bool_(True), np.array([3]), np.float64("nan"), np.float64(2.5), 1 + 0j):
        with pytest.raises(KnobError, match="takes a whole number"):
            coerce("max_num_seqs", wrong)


def test_a_cell_may_count_in_numpy_everywhere() -> None:
    with llmserve.serve(engine="simulator", prefill_ms=1, decode_ms=1) as session:
        session.set(max_num_seqs=np.int64(8))
        options: dict[str, Any] = {"max_tokens": np.int64(3), "temperature": np.float32(0.5)}
        assert session.generate("hi", **options).outcome.usage.completion_tokens == 3
        load: dict[str, Any] = {"requests": np.int64(2), "max_tokens": (np.int64(1), np.int64(2))}
        swept = session.sweep(
            max_num_seqs=np.array([1, 2]), concurrency=range(1, 3), rounds=1, progress=False, **load
        )
        assert [tuple(point.values.values()) for point in swept.points] == [
            (1, 1), (1, 2), (2, 1), (2, 2),
        ]  # fmt: skip
        assert type(swept).from_json(swept.to_json()) == swept
        sides = ({"max_num_seqs": np.int64(1)}, {"max_num_seqs": np.int64(2)})
        found = session.compare(*sides, pairs=3, concurrency=2, progress=False, **load)
        assert type(found).from_json(found.to_json()) == found
