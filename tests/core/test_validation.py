from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.core.validation import real, shown, whole

HUGE = 10**5000
"""Python refuses to write it: it has more than 4,300 digits."""


class Thing:
    def __repr__(self) -> str:
        return "a thing"  # without its address: a test has the same name in every process


THING: object = Thing()


@pytest.mark.parametrize(
    "value", [8, 8.0, "8", " 8\n", "8e0", np.int8(8), np.array(8), Fraction(8)], ids=shown
)
def test_a_whole_number_is_read_from_what_cells_and_command_lines_give(value: object) -> None:
    assert whole("n", value, 1, 10) == 8
    assert type(whole("n", value, 1, 10)) is int
    assert type(real("n", value, 1, 10)) is float


def test_a_whole_number_keeps_all_its_digits() -> None:
    assert whole("seed", 2**64 - 1, -(2**63), 2**64 - 1) == 2**64 - 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "n must be within 1 and 1,000 s, not 0"),
        (HUGE, "n must be within 1 and 1,000 s, not a number of thousands of digits"),
        (-HUGE, "n must be within 1 and 1,000 s, not a number of thousands of digits"),
        (Fraction(HUGE), "n must be within 1 and 1,000 s, not a Fraction that cannot be"),
        ("1" * 5000, r"n must be within 1 and 1,000 s, not '1+… \(5,002 characters\)$"),
        (1e308, "n must be within 1 and 1,000 s, not 1e[+]308"),
        (math.inf, "n must be within 1 and 1,000 s, not inf"),
        ("-inf", "n must be within 1 and 1,000 s, not '-inf'"),
        (np.float64(0.5), "n must be within 1 and 1,000 s, not 0.5"),
        *((wrong, "n takes a whole number, not ") for wrong in (
            math.nan, "nan", True, np.bool_(True), "", "10**5", "0x10", None, [8], {}, 8j, b"8",
            np.array([8]), Decimal(8), THING,
        )),
    ],
    ids=shown,
)  # fmt: skip
def test_what_is_no_such_number_is_told_in_a_sentence(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        whole("n", value, 1, 1000, "s")
    with pytest.raises(ValueError, match=f"^{said.replace('whole ', '')}"):
        real("n", value, 1, 1000, "s")


def test_a_part_is_no_whole_number() -> None:
    assert real("n", "2.5", 1, 10) == 2.5
    with pytest.raises(ValueError, match="n takes a whole number, not '2"):
        whole("n", "2.5", 1, 10)


@given(st.sampled_from([whole, real]), st.one_of(st.text(), st.floats(), st.integers()))
def test_any_value_is_within_bounds_or_refused(read: Callable[..., Any], value: object) -> None:
    try:
        number = read("n", value, -3, 3)
    except ValueError:
        with pytest.raises(ValueError, match=r"^n (takes a|must be within)"):
            read("n", value, -3, 3)
    else:
        assert -3 <= number <= 3
