"""What a pick costs with 10,000 waiting, per policy, and what a switch to it costs.

    PYTHONPATH=src:tests python tests/benchmarks/pick_time.py

A pick is `Scheduler.next` with a place free: finding who is first, moving it to active, and the
accounts. Each is timed alone, with one finish between, as in service; the median is printed.
"""

from __future__ import annotations

import random
import statistics
import time

from llmserve.core.knobs import Knobs
from llmserve.core.types import Request
from llmserve.scheduling.policies import POLICIES
from llmserve.scheduling.scheduler import Scheduler
from support.requests import request

WAITING = 10_000
TENANTS = 200
PICKS = 2_000


def requests() -> list[Request]:
    rng = random.Random(7)
    return [
        request(
            str(n), n * 1e-3, priority=rng.randint(0, 3), tenant=f"t{rng.randrange(TENANTS)}",
            max_tokens=rng.randint(1, 500), ttft_slo_ms=rng.choice([None, 500.0, 60_000.0]),
        )
        for n in range(WAITING + PICKS)
    ]  # fmt: skip


def measure(policy: str) -> tuple[float, float, float]:
    """Microseconds: median and 99th percentile of a pick; milliseconds: the switch."""
    everyone = requests()
    fifo = Knobs().changed({"queue_max": 100_000, "max_active": 64})
    other = "priority" if policy == "fifo" else "fifo"
    scheduler = Scheduler(100_000)
    start = fifo.changed({"policy": other})
    for each in everyone[:WAITING]:
        scheduler.offer(each, start, each.arrival)
    for _ in range(63):
        scheduler.next(start, 10.0)
    knobs = fifo.changed({"policy": policy})
    began = time.perf_counter()
    chosen = scheduler.next(knobs, 10.0)
    switch = time.perf_counter() - began
    active = [chosen] if chosen is not None else []
    times = []
    for n, arriving in enumerate(everyone[WAITING:]):
        now = 10.0 + n * 1e-3
        done = active.pop()
        scheduler.emitted(done.id, 5)
        scheduler.finish(done.id, now, complete=True)
        scheduler.offer(arriving, knobs, now)
        began = time.perf_counter()
        chosen = scheduler.next(knobs, now)
        times.append(time.perf_counter() - began)
        assert chosen is not None
        active.append(chosen)
    p99 = statistics.quantiles(times, n=100)[98]
    return statistics.median(times) * 1e6, p99 * 1e6, switch * 1e3


def main() -> None:
    print(f"{WAITING} waiting of {TENANTS} tenants, {PICKS} picks a policy")
    print(f"{'policy':<16}{'pick p50':>10}{'p99':>10}{'switch to it':>16}")
    for policy in POLICIES:
        p50, p99, switch = measure(policy)
        print(f"{policy:<16}{p50:>7.1f} µs{p99:>7.1f} µs{switch:>13.1f} ms")


if __name__ == "__main__":
    main()
