from __future__ import annotations

import pytest

from llmserve.core.validation import meant, shown

KNOWN = ("max_active", "max_num_seqs", "queue_timeout_s", "policy")


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
