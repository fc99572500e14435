"""Loads, settings and axes as words."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from llmserve.bench.load.request_kinds import LogNormal
from llmserve.bench.load.workload import Workload
from llmserve.entrypoints.commands.load_options import add_load, length, read_load_options
from llmserve.entrypoints.commands.settings import read_axes, read_setting


def typed(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_load(parser)
    return read_load_options(parser.parse_args(words))


def test_every_option_is_a_field_of_the_workload() -> None:
    words = [
        "--rate", "5", "--process", "ramp", "--rate-to", "9", "--burstiness", "0.5", "--period",
        "3", "--duration", "4", "--requests", "9", "--prompt-tokens", "8-16", "--max-tokens",
        "lognormal:32", "--prefix-tokens", "4", "--prefix-groups", "2", "--turns", "2-3",
        "--think", "0.5", "--tenant", "t", "--priority", "2", "--seed", "7", "--same-prompts",
    ]
    load = Workload(**typed(*words))
    assert (load.rate_to, load.period_s, load.duration_s, load.turns) == (9, 3, 4, (2, 3))
    assert load.max_tokens == LogNormal(32)
    assert load.same_prompts
    assert Workload(**typed("--mix", "long:30 short:70")).kinds.keys() == {"long", "short"}
    assert typed("--slo", "ttft:5", "--no-warmup") == {"slo": "ttft:5", "warmup": False}


def test_lengths_in_words() -> None:
    assert (length("64"), length("8-128")) == (64, (8, 128))
    assert length("lognormal:100:0.5:900") == LogNormal(100, 0.5, 1, 900)


def test_a_replay_is_read_and_refuses_what_has_no_meaning_in_it(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("timestamp,input_tokens,output_tokens\n0,5,2\n9,6,3\n")
    found = typed("--replay", str(path), "--speed", "3", "--slo", "ttft:9")
    assert [a.at_s for a in found["load"].arrivals()] == [0, 3]
    assert found["slo"] == "ttft:9"
    with pytest.raises(ValueError, match="--prompt-tokens has no meaning"):
        typed("--replay", str(path), "--prompt-tokens", "5")
    with pytest.raises(ValueError, match="--duration has no meaning"):
        typed("--replay", str(path), "--duration", "5")
    with pytest.raises(ValueError, match="--speed is of a --replay"):
        typed("--speed", "5")


def test_settings_and_axes_in_words() -> None:
    assert read_setting("fair_share") == "fair_share"
    assert read_setting(".") == {}
    assert read_setting("max_num_seqs=8,policy=fifo") == {"max_num_seqs": 8, "policy": "fifo"}
    assert read_axes(["max_num_seqs=1,8", "policy=fifo,priority", "x=[0.5]"]) == {
        "max_num_seqs": [1, 8], "policy": ["fifo", "priority"], "x": [0.5]
    }
    for wrong in (["a"], ["a="], [], ["a=1", "a=2"]):
        with pytest.raises(ValueError, match="axis|twice"):  # noqa: RUF043  # an alternative
            read_axes(wrong)
    with pytest.raises(ValueError, match="setting"):
        read_setting("a=1,b")
