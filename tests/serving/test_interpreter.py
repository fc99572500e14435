"""What serving sets for the whole interpreter, and that it is all given back."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from llmserve.serving.interpreter import WhileServing


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(0.005)
    gc.set_threshold(700, 10, 10)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)


def now() -> tuple[float, int]:
    return round(sys.getswitchinterval(), 6), gc.get_threshold()[0]


def test_both_settings_hold_until_the_last_session_has_ended() -> None:
    first, second = WhileServing(5e-5, 50_000), WhileServing(5e-5, 50_000)
    assert now() == (5e-5, 50_000)
    first.release()
    first.release()
    assert now() == (5e-5, 50_000)
    second.release()
    assert now() == (0.005, 700)


def test_none_leaves_a_setting_alone() -> None:
    held = WhileServing(None, None)
    assert now() == (0.005, 700)
    held.release()
    assert now() == (0.005, 700)


@pytest.mark.parametrize("own", [0, 200_000])
def test_a_collector_that_is_off_or_rarer_stays_so(own: int) -> None:
    gc.set_threshold(own, 10, 10)
    held = WhileServing(5e-5, 50_000)
    assert gc.get_threshold()[0] == own
    held.release()
    assert gc.get_threshold()[0] == own


def test_what_a_user_sets_meanwhile_stays() -> None:
    held = WhileServing(5e-5, 50_000)
    gc.set_threshold(1_000, 5, 5)
    held.release()
    assert gc.get_threshold() == (1_000, 5, 5)
    assert now()[0] == 0.005


def test_a_session_that_wants_less_haste_changes_nothing_for_the_other() -> None:
    quick, slow = WhileServing(5e-5, 50_000), WhileServing(1e-3, 10_000)
    assert now() == (5e-5, 50_000)
    quick.release()
    slow.release()
    assert now() == (0.005, 700)
