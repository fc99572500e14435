"""What is shown of a duration: its unit grows with it, and no number has an exponent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.core.quantities import UNITS, duration, moment, number, spread, tick, unit_of

CASES = json.loads(
    (Path(__file__).parents[2] / "widgets" / "test" / "quantities.json").read_text("utf-8")
)
SHOWN = re.compile(r"^-?<?[\d,]+(\.\d+)? (ms|s|min)$")
sizes = st.floats(min_value=0, max_value=1e12)


@pytest.mark.parametrize(("seconds", "words"), CASES["duration"])
def test_a_duration_reads_as_the_page_writes_it(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(("seconds", "words"), CASES["moment"])
def test_a_moment_reads_as_the_page_writes_it(seconds: float, words: str) -> None:
    assert moment(seconds) == words


@pytest.mark.parametrize(("value", "words"), CASES["number"])
def test_a_number_reads_as_the_page_writes_it(value: float, words: str) -> None:
    assert number(value) == words


def meant(words: str) -> tuple[int, float]:
    """Rank of the unit, and the seconds that the words say."""
    value, name = words.replace("<", "").split(" ")
    rank, unit = next((i, unit) for i, unit in enumerate(UNITS) if unit.name == name)
    return rank, float(value.replace(",", "")) * unit.seconds


@given(sizes, sizes)
def test_a_longer_duration_has_no_smaller_unit_and_is_not_shown_as_less(a: float, b: float) -> None:
    low, high = sorted((a, b))
    (rank, shown), (next_rank, next_shown) = meant(duration(low)), meant(duration(high))
    assert rank <= next_rank
    assert shown <= next_shown * (1 + 1e-12)


@given(st.floats(min_value=-1e12, max_value=1e12))
def test_no_duration_has_an_exponent_or_is_far_from_what_it_says(seconds: float) -> None:
    words = duration(seconds)
    assert SHOWN.match(words)
    _, shown = meant(words)
    assert shown == pytest.approx(seconds, rel=0.006, abs=1e-5)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_no_number_and_no_tick_has_an_exponent(value: float) -> None:
    assert "e" not in number(value)
    if value == value and abs(value) < 1e300:
        assert "e" not in tick(value)


@given(sizes, sizes)
def test_a_duration_and_its_interval_are_in_one_unit(seconds: float, half: float) -> None:
    words = spread(seconds, half)
    assert words.endswith(f" {unit_of(max(seconds, half)).name}")
    assert words.count(" ") == 2


def test_a_tick_has_all_its_digits_and_no_more() -> None:
    assert [tick(v) for v in (20_000, 0.0005, 1e6, 2.5, -0.0)] == [
        "20,000",
        "0.0005",
        "1,000,000",
        "2.5",
        "0",
    ]
    assert spread(3.2, None) == "3.2 s"
    assert spread(3.2, 0.04) == "3.2 ±0.04 s"


def test_what_is_no_number_is_shown_as_none() -> None:
    shown: list[Any] = [duration(float("nan")), number(float("inf")), duration(None)]
    assert shown == ["–", "–", "–"]
