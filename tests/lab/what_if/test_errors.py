"""Errors on held-out traffic: their arithmetic, and what they allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest

from llmserve.lab.what_if.errors import FIGURES, HeldOut, HeldOutErrors


def held_out(
    predicted: float, live: Sequence[float], name: str = "40 %",
    loop: Literal["open", "closed"] = "open",
) -> HeldOut:  # fmt: skip
    """All figures of it alike."""
    return HeldOut(
        name=name, load="a load", loop=loop, predicted=dict.fromkeys(FIGURES, predicted),
        live=tuple(dict.fromkeys(FIGURES, value) for value in live),
    )  # fmt: skip


def test_bias_has_a_sign_and_mape_has_none() -> None:
    errors = HeldOutErrors(held_out=(held_out(1.1, [1.0, 1.0]), held_out(0.8, [1.0, 1.0])))
    found = errors.of("ttft_p50")
    assert found is not None
    assert found.bias == pytest.approx(-0.05)
    assert found.mape == pytest.approx(0.15)
    assert (found.noise, found.n) == (0.0, 2)
    assert not found.met


def test_an_error_within_the_difference_of_two_live_runs_is_allowed() -> None:
    quiet = HeldOutErrors(held_out=(held_out(1.2, [1.0, 1.0]),))
    noisy = HeldOutErrors(held_out=(held_out(1.2, [0.8, 1.2]),))
    assert len(quiet.failures()) == len(FIGURES)
    assert noisy.failures() == []
    assert all(row[-1] == "NO" for row in quiet.rows())
    assert all(row[-1] == "yes" for row in noisy.rows())


def test_targets_are_those_of_each_figure() -> None:
    errors = HeldOutErrors(held_out=(held_out(1.07, [1.0, 1.0]),))
    failed = {line.partition(":")[0] for line in errors.failures()}
    assert failed == set(FIGURES) - {"ttft_p50", "ttft_p95"}


def test_a_load_that_ran_once_has_no_noise_and_one_that_did_not_no_error() -> None:
    once, never = held_out(1.0, [1.0]), held_out(1.0, [])
    assert once.noise("itl_p50") is None
    assert never.error("itl_p50") is None
    assert HeldOutErrors(held_out=(never,)).of("itl_p50") is None


def test_errors_of_open_and_closed_loops_are_kept_apart() -> None:
    both = HeldOutErrors(
        held_out=(held_out(1.5, [1.0, 1.0]), held_out(1.0, [1.0, 1.0], "closed loop", "closed"))
    )
    assert both.failures("closed") == []
    assert both.failures("open")
    assert "closed loop" in both.to_markdown()
    assert "+50.0%" in both._repr_html_()
