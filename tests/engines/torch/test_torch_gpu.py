"""What only a GPU can show: that recorded steps are right, what they win, and what closing frees.

Run with `-s`, `test_speed_beside_generate_and_the_cards_memory` prints its table.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import llmserve
from benchmarks.gpu_torch import SpeedTable, driven, graphs_of, memory_speed, unequal
from llmserve.entrypoints.session.shutdown_report import device_used

DEVICE = "cuda"
NEW = 64


@pytest.mark.gpu
@pytest.mark.parametrize("forward", ["compact", "general"])
def test_recorded_steps_say_what_generate_says(llama: Path, forward: str) -> None:
    one = driven(llama, device=DEVICE, graphs=True, forward=forward)
    assert unequal(one, llama, DEVICE, rows=11, new=NEW) == []
    assert graphs_of(one), "no graph was recorded"


@pytest.mark.gpu
def test_speed_beside_generate_and_the_cards_memory(tmp_path: Path) -> None:
    table = SpeedTable(tmp_path, "235M", DEVICE, new=NEW, read_speed=memory_speed(DEVICE))
    roof = table.steps_per_s
    print(f"\nthe roof, if a step only read the weights: {roof:,.0f} steps/s")  # noqa: T201  # asked for
    for rows in (1, 8, 32):
        found = table.row(rows)
        shown = ", ".join(f"{name} {speed:,.0f}" for name, speed in found.items())
        share = found["recorded"] / (rows * roof)
        print(f"{rows} rows, tokens/s: {shown}; {share:.0%} of the roof")  # noqa: T201  # asked for
    assert ", ".join(sorted(found)) == "generate, recorded, step by step"


@pytest.mark.gpu
def test_closing_gives_the_cards_memory_back(llama: Path) -> None:
    before = device_used()
    assert before is not None
    with llmserve.serve(str(llama), engine="torch", kv_cache_memory_bytes=1 << 28) as session:
        assert session.generate("hello", max_tokens=40, temperature=0.0)
        assert session.service.engine.info.device.startswith("cuda")
        during = device_used()
        assert during is not None
        assert during > before
    after = device_used()
    assert after is not None
    assert after < before + (64 << 20)
