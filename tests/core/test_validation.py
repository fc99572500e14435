"""Values as users give them: taken as Python's own, or told in a sentence what is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.core.knobs import KnobError, coerce
from llmserve.core.validation import (
    Bounds,
    MistypedValue,
    flag,
    meant,
    number,
    one_of,
    plain,
    real,
    shown,
    text,
    texts,
    whole,
    wholes,
)

HUGE = 10**5000
"""Python refuses to write it: it has more than 4,300 digits."""
SHARE = Bounds("n", 0, 1, kind="real", above=True)
RATE = Bounds("n", 0, math.inf, kind="real", above=True)
KNOWN = ("max_active", "max_num_seqs", "queue_timeout_s", "policy")


class Thing:
    def __repr__(self) -> str:
        return "a thing"  # without its address: a test has the same name in every process


NO_NUMBERS: list[object] = [
    math.nan, "nan", True, np.bool_(True), "", "10**5", "0x10", None, [8], {}, 8j, b"8",
    np.array([8]), Decimal(8), Thing(),
]  # fmt: skip


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
        *((wrong, "n takes a whole number, not ") for wrong in NO_NUMBERS),
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


@pytest.mark.parametrize(
    ("bounds", "value", "said"),
    [
        (Bounds("n", 1, 8, "s"), 9, "n must be within 1 and 8 s, not 9"),
        (SHARE, 0, "n must be above 0 and at most 1, not 0"),
        (SHARE, 0.0, "n must be above 0 and at most 1, not"),
        (RATE, math.inf, "above 0 and finite, not inf"),
        (Bounds("n", 0, math.inf, "s", kind="real"), -1, "must be 0 s or more and finite, not -1"),
        (Bounds("n", 1, math.inf), 0, "n must be 1 or more, not 0"),
        (Bounds("n", 1, math.inf), math.inf, "n takes a whole number, not inf"),
        (Bounds("n", -math.inf, math.inf), -math.inf, "n takes a whole number, not -inf"),
        (Bounds("n", 0.5, 1e9, "s", kind="real"), 0, "be within 0.5 and 1,000,000,000 s, not 0"),
        (Bounds("n", 1, 8), None, "n takes a whole number, not None"),
        (Bounds("n", 1, 8), "8", "n takes a whole number, not '8'"),
        (Bounds("n", 1, 8), 8.0, "n takes a whole number, not 8.0"),
    ],
)  # fmt: skip
def test_a_row_of_a_table_says_what_it_takes(bounds: Bounds, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        bounds.read(value)
    assert isinstance(caught.value, MistypedValue) == (" takes " in said)


def test_a_row_takes_both_ends_and_none_where_it_may_be() -> None:
    row = Bounds("n", 1, 8, optional=True)
    assert [row.read(value) for value in (1, 8, np.int64(8), None)] == [1, 8, 8, None]
    with pytest.raises(ValueError, match="the header must be within"):
        row.read(9, called="the header")
    assert type(Bounds("n", 0, 8, kind="real").read(8)) is float
    anything = Bounds("n", -math.inf, math.inf)
    assert [anything.read(value) for value in (-(10**30), np.int64(-3))] == [-(10**30), -3]


@pytest.mark.parametrize(
    ("typed", "said"),
    [("8", 8), ("-3", -3), ("08", 8), ("0.5", 0.5), ("1e400", math.inf), ("True", True),
     ("[1]", [1]), ("x", "x"), ("", "")],
)  # fmt: skip
def test_what_was_typed_is_a_number_where_it_says_one(typed: str, said: object) -> None:
    assert number(typed) == said
    assert type(number(typed)) is type(said)


def test_words_texts_truths_and_lists_are_checked_alike() -> None:
    assert one_of("n", "a", "ab") == "a"
    assert flag("n", np.bool_(True)) is True
    assert text("n", "ab", 2) == "ab"
    assert texts("n", "ab", 2) == ("ab",)
    assert wholes("n", np.array([1, 2]), 0, 2) == (1, 2)
    for read, said in (
        (lambda: one_of("n", True, [1]), "n is one of 1, not True"),
        (lambda: flag("n", 1), "n is true or false, not 1"),
        (lambda: text("n", "", 2), "n is 1 to 2 characters, not ''"),
        (lambda: text("n", "a\n", 2, printable=True), "n is 1 to 2 printable characters"),
        (lambda: text("n", None, 2), "n is 1 to 2 characters, not None"),
        (lambda: texts("n", ["a", 3], 2), "n takes at most 2 strings, not ['a', 3]"),
        (lambda: texts("n", ["a", ""], 2), "n takes at most 2 strings, none of them empty"),
        (lambda: texts("n", list("abc"), 2), "n takes at most 2 strings, none of them empty"),
        (lambda: wholes("n", [1, 3], 0, 2), "n must be within 0 and 2, not 3"),
        (lambda: wholes("n", [1, True], 0, 2), "n takes a whole number, not True"),
        (lambda: wholes("n", 1, 0, 2), "n takes a list of whole numbers, not 1"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            read()


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


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("max_num_sqs", "max_num_seqs"),
        ("max_num", "max_num_seqs"),  # begun
        ("MAX-NUM-SEQS", "max_num_seqs"),
        ("timeout", "queue_timeout_s"),  # a part of it
        ("polcy", "policy"),
    ],
)
def test_the_name_that_was_meant_is_guessed(word: str, name: str) -> None:
    assert meant(word, KNOWN) == f"; did you mean {name}?"


@pytest.mark.parametrize("word", ["", "p", "steam", "x" * 10_000, 10**5000], ids=shown)
def test_what_is_like_nothing_is_answered_with_all_there_is(word: object) -> None:
    all_of_them = "max_active, max_num_seqs, queue_timeout_s, policy"
    assert meant(word, KNOWN) == f"; there is {all_of_them}"
    assert meant(word, KNOWN, called="knobs:") == f"; knobs: {all_of_them}"
    assert meant(word, KNOWN, listed=("a", "b")) == "; there is a, b"
    assert meant(word, KNOWN, listed=()) == ""


def test_hundreds_of_names_are_not_listed() -> None:
    many = [f"option_{n}" for n in range(200)]
    assert meant("steam", many) == ""
    assert meant("optoin_7", many) == "; did you mean option_7?"


def test_a_value_is_shown_as_typed_and_cut_where_it_is_long() -> None:
    assert shown(2.5) == "2.5"
    assert shown("8") == "'8'"
    assert shown("x" * 100_000) == f"'{'x' * 59}… (100,002 characters)"


def test_a_value_that_cannot_be_written_is_named_by_its_kind() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    assert shown(10**5000) == "a number of thousands of digits"
    assert shown([10**5000]) == "a list that cannot be written out"
    assert shown(Odd()) == "an Odd that cannot be written out"
