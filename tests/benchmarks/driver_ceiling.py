"""The bench driver's own ceiling: requests per second at which its lag (p99) passes 5 ms.

    cd tests && python -m benchmarks.driver_ceiling [--tokens 16] [--seconds 3] [--drivers url,here]

`url` reads over HTTP from a server that only answers, in a process of its own: what the driver of
`own_process=True` and of `--url` can do. `here` drives a simulator on its own loop, as `bench` in
a cell does; the service's work is in it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

from llmserve.bench.load.workload import Workload
from llmserve.bench.results.report import LATE_S, Report
from llmserve.bench.run.client import Client
from llmserve.bench.run.driver import Bench, ServiceTarget, Target
from llmserve.bench.run.http_target import HttpTarget
from llmserve.core.clock import MonotonicClock
from llmserve.core.events import EventBus
from llmserve.core.knobs import KnobBoard, Knobs
from llmserve.engines.simulator.engine import SimulatorEngine
from llmserve.serving.publisher import publish_step
from llmserve.serving.service import Service

STEP = 1.25
TRIES = 3
"""A rate holds where the median of so many tries does."""


@asynccontextmanager
async def canned(tokens: int) -> AsyncIterator[str]:
    words = [sys.executable, str(Path(__file__).with_name("canned.py")), "--tokens", str(tokens)]
    process = await asyncio.create_subprocess_exec(
        *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.stdin.close()
        await process.wait()


@asynccontextmanager
async def url_target(tokens: int) -> AsyncIterator[Target]:
    async with canned(tokens) as url, aclosing(Client(url, "none")) as client:
        yield HttpTarget(client, "canned", MonotonicClock())


@asynccontextmanager
async def here_target(tokens: int) -> AsyncIterator[Target]:
    bus, clock = EventBus(), MonotonicClock()
    engine = SimulatorEngine(
        sink=partial(publish_step, bus), clock=clock, prefill_ms=5, decode_ms=5,
        max_num_seqs_ceiling=1024,
    )  # fmt: skip
    knobs = Knobs().changed({"max_num_seqs": 1024, "max_num_batched_tokens": 16384})
    service = Service(engine, KnobBoard(knobs), bus, clock)
    await service.start()
    try:
        yield ServiceTarget(service, bus)
    finally:
        await service.stop()


TARGETS = {"url": url_target, "here": here_target}


async def lag(target: Target, rate: float, options: argparse.Namespace) -> Report:
    load = Workload(
        rate=rate, duration_s=options.seconds, prompt_tokens=8, max_tokens=options.tokens
    )
    gc.collect()
    return await Bench(target, load).run()


async def ceiling(name: str, options: argparse.Namespace) -> float:
    held, rate = 0.0, float(options.start)
    async with TARGETS[name](options.tokens) as target:
        await lag(target, 20, argparse.Namespace(**vars(options) | {"seconds": 0.5}))
        while True:
            reports = [await lag(target, rate, options) for _ in range(TRIES)]
            late = sorted(report.lag.p99 or 0.0 for report in reports)
            failed = sum(report.sent - report.n for report in reports)
            print(
                f"  {name}: {rate:6.0f} requests/s: lag p99 "
                f"{', '.join(f'{value * 1e3:.1f}' for value in late)} ms, {failed} failed, "
                f"{sum(r.generated_tokens_per_s for r in reports) / TRIES:,.0f} tokens/s",
                flush=True,
            )
            if late[TRIES // 2] > LATE_S or failed:
                return held
            held, rate = rate, rate * STEP


async def main(options: argparse.Namespace) -> None:
    print(
        f"{len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}; "
        f"Poisson, {options.tokens} tokens a reply, {TRIES} runs of {options.seconds:g} s a rate"
    )
    for name in options.drivers:
        held = await ceiling(name, options)
        tokens = held * options.tokens
        print(f"{name}: on time up to {held:.0f} requests/s ({tokens:,.0f} tokens/s)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--start", type=float, default=50.0)
    parser.add_argument("--drivers", type=lambda text: text.split(","), default=[*TARGETS])
    asyncio.run(main(parser.parse_args()))
