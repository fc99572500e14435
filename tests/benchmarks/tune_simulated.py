"""Tuning on fifty simulated workloads, each beside its whole grid: python -m
benchmarks.tune_simulated [COUNT]

Each has step costs, a load of 40 to 90 % of the capacity, and a present setting of its own. The
service runs on virtual time with jitter; the predictor's costs are wrong by up to a tenth. The
truth is the grid of 16 points, each 3 x 10 s.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

from lab.worlds import simulated
from llmserve.bench.load.workload import Load, Workload
from llmserve.bench.results.intervals import interval
from llmserve.core.clock import VirtualClock
from llmserve.engines.simulator.costs import StepCost
from llmserve.lab.settings import here
from llmserve.lab.simulation import simulate
from llmserve.lab.sweep_result import combinations
from llmserve.lab.tuning.limits import read_limits
from llmserve.lab.tuning.result import TuneResult
from llmserve.lab.tuning.tuning_job import Tuning

GRID: dict[str, list[Any]] = {
    "max_num_seqs": [4, 8, 16, 32], "max_num_batched_tokens": [64, 256, 1024, 2048],
}  # fmt: skip
LIMITS = read_limits("ttft_p95=300ms itl_p99=60ms")
WORKLOADS, ROUNDS, GRID_S, TRIAL_S, JITTER = 50, 3, 10.0, 5.0, 0.1


def one(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    cost = {
        "prefill_ms": rng.uniform(5, 25), "decode_ms": rng.uniform(5, 20),
        "prefill_token_ms": rng.uniform(0, 0.05), "decode_token_ms": rng.uniform(0, 1),
    }  # fmt: skip
    prompt = rng.choice([(16, 64), (64, 256), (256, 512)])
    sizes: dict[str, Any] = {"prompt_tokens": prompt, "max_tokens": (8, rng.choice([24, 48]))}
    full = Workload(concurrency=32, requests=200, **sizes)
    most = {name: values[-1] for name, values in GRID.items()}
    capacity = simulate(full, most, StepCost(**cost), progress=False).report.requests_per_s
    load = Workload(
        rate=rng.uniform(0.4, 0.9) * capacity, duration_s=TRIAL_S, seed=seed, **sizes
    )  # fmt: skip
    present = rng.choice(combinations(GRID))
    tuned = _tuned(load, cost, present, {k: v * rng.uniform(0.9, 1.1) for k, v in cost.items()})
    rows, grid_s = _truth(load, cost)
    best = max(rows, key=lambda label: sum(rows[label]))
    chosen = tuned.winner or tuned.present
    label = json.dumps(chosen)
    short = interval([a - b for a, b in zip(rows[best], rows[label], strict=True)])
    same = label == best or (short is not None and not short.excludes_zero)
    mean = {name: sum(row) / len(row) for name, row in rows.items()}
    return {
        "same": same, "short of the best": 1 - mean[label] / (mean[best] or 1.0),
        "share": tuned.spent_s / grid_s, "live_s": tuned.live_s, "grid_s": grid_s,
        "gain": tuned.winner is not None, "present was best": mean[json.dumps(present)] / (
            mean[best] or 1.0) > 0.99,
        "worse than present": mean[label] < 0.98 * mean[json.dumps(present)],
        "stopped": tuned.stopped.partition(";")[0],
    }  # fmt: skip


def _tuned(
    load: Workload, cost: dict[str, float], present: dict[str, Any], wrong: dict[str, float]
) -> TuneResult:
    clock = VirtualClock()

    def predict(asked: Load, knobs: Any) -> Any:
        slo = LIMITS.of_a_request
        return simulate(asked, knobs, StepCost(**wrong), slo=slo, progress=False).report

    async def main() -> TuneResult:
        async with simulated(clock, jitter=JITTER, seed=load.seed, **cost) as (service, bus):
            await service.set_knobs(present, source="test")
            job = Tuning(
                here(service, bus), combinations(GRID), load, figure="goodput_per_s",
                limits=LIMITS, budget_s=180,
            )  # fmt: skip
            job.predict(predict)
            return await job.run()

    return clock.run(main())


def _truth(load: Workload, cost: dict[str, float]) -> tuple[dict[str, list[float]], float]:
    """Each point's goodput in each round, and the seconds that the grid takes live."""
    from dataclasses import replace

    rows, seconds = {}, 0.0
    for values in combinations(GRID):
        row = []
        for number in range(ROUNDS):
            long = replace(load, duration_s=GRID_S).with_seed(1000 + number)
            report = simulate(
                long, values, StepCost(**cost), slo=LIMITS.of_a_request, progress=False,
                jitter=JITTER, seed=number,
            ).report  # fmt: skip
            row.append(report.goodput_per_s or 0.0)
            seconds += report.duration_s
        rows[json.dumps(values)] = row
    return rows, seconds


def main(count: int = WORKLOADS) -> None:
    found = []
    for seed in range(count):
        found.append(one(seed))
        print(seed, found[-1], flush=True)
    shares = sorted(each["share"] for each in found)
    print("same best point within its interval:", sum(each["same"] for each in found), "of", count)
    print("worse than the present setting:", sum(each["worse than present"] for each in found))
    print("time, share of the grid's: median", shares[count // 2], "most", shares[-1])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
