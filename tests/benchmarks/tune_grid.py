"""Tuning beside the whole grid and beside random search, on a live server without a restart.

    python -m benchmarks.tune_grid ENGINE [JSON]

The grid of 16 points is fixed beforehand, each 3 x 10 s. Tuning goes first, then random search of
as much live time, then the grid, whose best point is the truth.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import llmserve
from llmserve.bench.results.intervals import interval
from llmserve.entrypoints.session.session import Session
from llmserve.lab.sweep_result import combinations

GRID: dict[str, list[Any]] = {
    "max_num_seqs": [4, 8, 16, 32],
    "max_num_batched_tokens": [64, 256, 1024, 2048],
}
PRESENT = {"max_num_seqs": 4, "max_num_batched_tokens": 64}
SLO = {"ttft_p95_ms": 300, "itl_p99_ms": 50}
RUN_SLO = "ttft:300 tpot:50"
LOADS: dict[str, dict[str, Any]] = {
    "chat": {"rate": 25.0, "prompt_tokens": (32, 96), "max_tokens": (16, 64)},
    "long prompts": {"rate": 12.0, "prompt_tokens": (256, 512), "max_tokens": (8, 32)},
    "bursts": {
        "rate": 15.0, "process": "gamma", "burstiness": 0.25, "prompt_tokens": (32, 96),
        "max_tokens": (16, 64),
    },
}
TRIAL_S, GRID_S, ROUNDS = 5.0, 10.0, 3


def searched(session: Session, load: dict[str, Any], live_s: float) -> dict[str, Any]:
    """Random search: points drawn without return, two trials each, the best mean wins."""
    points = combinations(GRID)
    random.Random(7).shuffle(points)
    began, best, tried = time.monotonic(), (-1.0, PRESENT), 0
    for point in points:
        if time.monotonic() - began + 2 * TRIAL_S > live_s:
            break
        session.set(**point)
        found = session.bench(
            duration=TRIAL_S, slo=RUN_SLO, repeats=2, warmup=False, progress=False, **load
        )
        tried += 1
        best = max(best, (found.goodput_per_s or 0.0, point), key=lambda each: each[0])
    session.set(**PRESENT)
    return {"best": best[1], "mean": best[0], "tried": tried, "s": time.monotonic() - began}


def measured(session: Session, load: dict[str, Any]) -> dict[str, Any]:
    session.set(**PRESENT)
    began = time.monotonic()
    tuned = session.tune(slo=SLO, knobs=GRID, trial_s=TRIAL_S, progress=False, **load)
    tune_s = time.monotonic() - began
    print(tuned, flush=True)
    drawn = searched(session, load, tuned.live_s)
    print("random search:", drawn, flush=True)
    began = time.monotonic()
    axes: dict[str, Any] = {**GRID}
    grid = session.sweep(
        slo=RUN_SLO, rounds=ROUNDS, duration=GRID_S, progress=False, **load, **axes
    )
    grid_s = time.monotonic() - began
    best = grid.best("goodput_per_s")
    rows = {
        point.label: [found.value, found.half]
        for point in grid.points
        if (found := interval(point.series("goodput_per_s"))) is not None
    }
    equals = [best.leader.values, *(point.values for point in best.equals)]
    chosen = tuned.winner or tuned.present
    return {
        "tune": {"best": chosen, "s": tune_s, "live_s": tuned.live_s,
                 "calibration_s": tuned.calibration_s, "stopped": tuned.stopped,
                 "refuted": tuned.refuted, "verdict": tuned.verdict},
        "random": drawn | {"among the grid's best": drawn["best"] in equals},
        "grid": {"best": best.leader.values, "equals": equals, "s": grid_s, "rows": rows},
        "tune is among the grid's best": chosen in equals,
        "share of the grid's time": tune_s / grid_s,
    }  # fmt: skip


def main(engine: str, path: str | None = None, *names: str) -> None:
    found = {}
    with llmserve.serve(engine=engine, max_num_seqs=32) as session:
        for name in names or LOADS:
            found[name] = measured(session, LOADS[name])
            print(json.dumps({name: found[name]}, indent=1, default=str), flush=True)
            if path:
                with open(path, "w", encoding="utf-8") as file:
                    json.dump(found, file, indent=1, default=str)


if __name__ == "__main__":
    main(*sys.argv[1:])
