"""The rules of tuning on made-up noise: who is taken out, who wins, what a rate is shown to do."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.lab.tuning.bisection import MOST_RUNS, Bisection
from llmserve.lab.tuning.race import (
    FIRST_LOOK,
    MOST_PAIRS,
    MOST_ROUNDS,
    Race,
    confirmed,
    margin,
)
from llmserve.lab.tuning.shape import cliffs, frontier, proposals

points = st.lists(
    st.tuples(st.floats(0, 1e4, allow_nan=False), st.floats(0, 1e4, allow_nan=False)), max_size=30
)


def raced(truth: dict[str, float], noise: float, rng: random.Random) -> tuple[Race, bool, int]:
    """A whole race and its confirming pairs: whether a gain is declared, and how many trials."""
    race = Race(list(truth), "present")
    trials = 0

    def run(name: str, luck: float) -> float:
        return truth[name] * (1 + luck + rng.gauss(0, noise))

    for number in range(MOST_ROUNDS):
        luck = rng.gauss(0, 0.1)  # of the arrivals: the same for all
        for name in race.racing:
            race.add(name, number, run(name, luck))
            trials += 1
        race.eliminate()
        if race.decided:
            break
    pairs: list[tuple[float, float]] = []
    while race.leader != "present" and len(pairs) < MOST_PAIRS and not confirmed(pairs):
        luck = rng.gauss(0, 0.1)
        pairs.append((run(race.leader, luck), run("present", luck)))
        trials += 2
    return race, confirmed(pairs, last=True), trials


def test_equal_settings_are_declared_a_gain_in_few_of_many_tunings() -> None:
    rng = random.Random(1)
    equal = dict.fromkeys(("present", "a", "b", "c", "d"), 10.0)
    declared = sum(raced(equal, 0.05, rng)[1] for _ in range(400))
    assert declared <= 20, "5 in 100 would be 20; one side alone makes half of it"


def test_a_setting_that_is_worse_is_hardly_ever_declared_the_winner() -> None:
    rng = random.Random(2)
    truth = {"present": 10.0, "a": 9.5, "b": 9.7, "c": 8.0, "d": 5.0}
    assert sum(raced(truth, 0.05, rng)[1] for _ in range(400)) <= 8


def test_the_best_setting_is_rarely_taken_out_and_a_large_gain_is_found() -> None:
    rng = random.Random(3)
    truth = {"present": 10.0, "a": 14.0, "b": 12.0, "c": 9.0, "d": 6.0}
    found = [raced(truth, 0.05, rng) for _ in range(300)]
    assert sum("a" in race.out for race, _, _ in found) <= 6
    won = sum(gain and race.leader == "a" for race, gain, _ in found)
    assert won >= 285
    assert sum(trials for *_, trials in found) / len(found) < 5 * MOST_ROUNDS + 2 * FIRST_LOOK


@given(st.integers(0, 2**32), st.floats(0, 0.3), st.integers(2, 8))
def test_the_leader_always_races_and_nobody_is_taken_out_twice(
    seed: int, noise: float, count: int
) -> None:
    rng = random.Random(seed)
    truth = {"present": 1.0} | {f"s{i}": rng.uniform(0, 2) for i in range(count - 1)}
    race = Race(list(truth), "present")
    for number in range(MOST_ROUNDS):
        before = set(race.out)
        for name in race.racing:
            race.add(name, number, truth[name] + rng.gauss(0, noise))
        lost = {each.name for each in race.eliminate()}
        assert not lost & before
        assert race.leader in race.racing
        assert set(race.racing) | set(race.out) == set(truth)


def test_two_rounds_without_noise_decide() -> None:
    race = Race(["present", "a"], "present")
    for number in range(2):
        race.add("present", number, 10.0)
        race.add("a", number, 12.0)
    assert not race.out
    (lost,) = race.eliminate()
    assert (lost.name, lost.leader, lost.by.value) == ("present", "a", 2.0)
    assert race.decided


def test_equal_settings_leave_the_present_one_in_the_lead() -> None:
    race = Race(["present", "a"], "present")
    for number in range(2):
        for name in ("a", "present"):
            race.add(name, number, 10.0)
    assert race.eliminate() == []
    assert race.leader == "present"
    assert race.decided


def test_pairs_are_looked_at_at_two_places_only_and_with_care_at_the_first() -> None:
    clear = [(12.0, 10.0), (12.1, 10.0), (12.2, 10.1)]
    assert confirmed(clear)
    assert not confirmed(clear[:2])
    assert not confirmed([(10.0, 12.0)] * FIRST_LOOK), "shown to be worse is no gain"
    assert not confirmed([(10.5, 10.0), (9.9, 10.0), (10.4, 10.0)])
    found = margin(clear)
    assert found is not None
    assert found.value == pytest.approx(0.206, abs=0.001)


@given(points)
def test_a_frontier_is_what_no_other_point_beats_in_both(
    given_points: list[tuple[float, float]],
) -> None:
    found = frontier(given_points)
    for latency, gain in found:
        assert not [p for p in given_points if p[0] <= latency and p[1] > gain]
    for latency, gain in set(given_points) - set(found):
        assert [p for p in found if p[0] <= latency and p[1] >= gain]
    assert found == sorted(found)


def test_a_cliff_is_named_between_its_neighbours_along_one_knob() -> None:
    tried = [({"n": n, "p": "fifo"}, figure) for n, figure in ((8, 9.0), (24, 10.0), (32, 1.0))]
    tried.append(({"n": 64, "p": "priority"}, 0.0))
    (found,) = cliffs(tried, {"n": 24, "p": "fifo"})
    assert str(found) == "cliff between 24 and 32 (n)"
    assert cliffs(tried[:2], {"n": 24, "p": "fifo"}) == []


def test_settings_of_which_the_same_is_predicted_are_tried_once_nearest_to_the_present() -> None:
    grid = [{"n": n, "p": p} for n in (8, 16) for p in ("fifo", "other")]
    predicted = {0: 5.0, 1: 5.0, 2: 9.0, 3: 9.0}
    kept = proposals(grid, predicted, {"n": 4, "p": "other"}, 9, lambda place: predicted[place])
    assert [grid[place] for place in kept] == [{"n": 16, "p": "other"}, {"n": 8, "p": "other"}]


def searched(capacity: float, noise: float, rng: random.Random, start: float) -> Bisection:
    """Latency over its limit as a queue has it: small, and without end at the capacity."""
    search = Bisection(start)
    for _ in range(200):
        rate = search.following()
        if rate is None:
            return search
        share = 1e6 if rate >= capacity else 0.2 / (1 - rate / capacity)
        search.add(rate, share * math.exp(rng.gauss(0, noise)))
    raise AssertionError("it never ended")


@given(st.integers(0, 2**32), st.floats(0, 0.2), st.floats(0.5, 500), st.floats(0.1, 100))
def test_the_largest_rate_is_bracketed_to_a_twentieth(
    seed: int, noise: float, capacity: float, start: float
) -> None:
    found = searched(capacity, noise, random.Random(seed), start)
    truth = 0.8 * capacity  # where the share is 1
    assert found.low < found.high <= 1.05 * found.low * (1 + 1e-9)
    assert 0.7 * truth < found.low < 1.2 * truth
    assert all(len(shares) <= MOST_RUNS for shares in found.shares.values())


def test_a_rate_at_which_latency_jumps_is_a_cliff_and_a_slope_is_none() -> None:
    steep, gentle = Bisection(10.0), Bisection(10.0)
    while (rate := steep.following()) is not None:
        steep.add(rate, 0.2 if rate < 25 else 40.0)
    while (rate := gentle.following()) is not None:
        gentle.add(rate, rate / 25)
    assert steep.low < 25 <= steep.high
    assert steep.cliff == pytest.approx(200)
    assert gentle.cliff is None


def test_a_server_that_meets_nothing_ends_the_search() -> None:
    search = Bisection(8.0)
    while (rate := search.following()) is not None:
        search.add(rate, 50.0)
    assert search.low == 0
    assert search.high <= 8.0 / 1024
