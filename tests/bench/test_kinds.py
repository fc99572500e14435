"""What requests are like: lengths, mixes, chats, shared beginnings."""

from __future__ import annotations

import random
import statistics
from collections import Counter

import pytest

from llmserve.bench.load.request_kinds import NAMED, Kind, LogNormal, parse_mix
from llmserve.bench.load.workload import Workload


def test_a_lognormal_has_its_median_a_long_tail_and_keeps_within_its_ends() -> None:
    rng = random.Random(1)
    drawn = [LogNormal(100, 1.0, low=4, high=1000).draw(rng) for _ in range(5000)]
    assert statistics.median(drawn) == pytest.approx(100, rel=0.06)
    assert statistics.mean(drawn) > 1.3 * statistics.median(drawn)
    assert (min(drawn) >= 4, max(drawn)) == (True, 1000)
    with pytest.raises(ValueError, match="median"):
        LogNormal(5, low=9)


def test_a_mix_draws_its_kinds_by_weight_with_their_own_tenants_and_objectives() -> None:
    batch = Kind(
        weight=30, prompt_tokens=500, max_tokens=9, tenant="batch", priority=5, ttft_slo_ms=900
    )
    load = Workload(requests=4000, mix={"batch": batch, "short": 70})
    arrivals = list(load.arrivals())
    counts = Counter(a.tenant for a in arrivals)
    assert counts["batch"] / 4000 == pytest.approx(0.3, abs=0.03)
    one = next(a for a in arrivals if a.tenant == "batch")
    assert (one.prompt_tokens, one.max_tokens, one.priority, one.ttft_slo_ms) == (500, 9, 5, 900)
    assert "batch 30: 500 tokens in, 9 out; short 70: 64 tokens in, 64 out" in str(load)


def test_a_mix_in_words_means_the_named_kinds() -> None:
    assert parse_mix("long:30 short:70")["short"].weight == 70
    assert parse_mix("long,short:2")["long"] == NAMED["long"]


def test_the_200_200_workload_is_a_name() -> None:
    assert {(a.prompt_tokens, a.max_tokens) for a in Workload(mix="medium").arrivals()} == {
        (200, 200)
    }


def test_groups_share_their_beginning_and_nothing_else() -> None:
    load = Workload(requests=300, prompt_tokens=40, prefix_tokens=16, prefix_groups=3)
    arrivals = list(load.arrivals())
    assert len({a.prefix_salt for a in arrivals}) == 3
    assert len({a.salt for a in arrivals}) == 300


def test_a_chat_has_its_turns_each_behind_the_other() -> None:
    load = Workload(requests=50, prompt_tokens=(4, 9), max_tokens=7, turns=(2, 5), think_s=1.5)
    arrivals = list(load.arrivals())
    assert {len(a.later) + 1 for a in arrivals} == {2, 3, 4, 5}
    turn = arrivals[0].turn(1)
    assert (turn.prompt_tokens, turn.later, turn.think_s) == (
        arrivals[0].later[0].prompt_tokens, (), 1.5
    )
    assert turn.salt != arrivals[0].salt
