from __future__ import annotations

import numpy as np

from llmserve.core.events import KnobsChanged, KnobsSatisfied
from llmserve.dashboard.series import MARKS, Marks, Series


def test_rows_since_a_position_are_those_appended_after_it() -> None:
    series = Series(2, capacity=4)
    for t in range(3):
        series.append(t, [t, -t])
    times, values = series.since(1)
    assert times.tolist() == [1, 2]
    assert values.tolist() == [[1, -1], [2, -2]]
    assert len(series.since(3)[0]) == 0


def test_a_full_series_keeps_the_newest_rows_and_says_which_is_the_oldest() -> None:
    series = Series(1, capacity=4)
    for t in range(23):
        series.append(t, [t])
        kept = min(t + 1, 4)
        assert series.oldest == t + 1 - kept
        assert series.since(0)[0].tolist() == list(range(t + 1 - kept, t + 1))


def test_rows_handed_out_do_not_change_later() -> None:
    series = Series(1, capacity=2)
    series.append(0, [0])
    times, values = series.since(0)
    for t in range(1, 9):
        series.append(t, [t])
    assert times.tolist() == [0]
    np.testing.assert_array_equal(values, [[0]])


def changed(t: float, before: int, after: int) -> KnobsChanged:
    return KnobsChanged(t=t, changed={"max_num_seqs": (before, after)}, source="code", step=5, ms=1)


def test_a_change_makes_a_mark_with_what_it_was_what_it_became_and_the_step() -> None:
    marks = Marks()
    marks.fold(changed(12.0, 32, 8))
    (mark,) = marks.since(0)
    assert mark.as_json(t0=10.0) == {
        "id": 1, "t": 2.0, "source": "code", "step": 5, "changed": {"max_num_seqs": [32, 8]},
        "clamped": [], "satisfied": {},
    }


def test_a_cap_that_is_kept_at_last_renews_the_mark_that_lowered_it() -> None:
    marks = Marks()
    marks.fold(changed(1.0, 32, 8))
    marks.fold(changed(2.0, 8, 4))
    seen = marks.revision
    marks.fold(KnobsSatisfied(t=3.0, name="max_num_seqs", step=9))
    (renewed,) = marks.since(seen)
    assert (renewed.id, renewed.satisfied) == (2, {"max_num_seqs": 9})


def test_marks_are_bounded() -> None:
    marks = Marks()
    for i in range(MARKS + 50):
        marks.fold(changed(i, i, i + 1))
    assert len(marks.since(0)) == MARKS
