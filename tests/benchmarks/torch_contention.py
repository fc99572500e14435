"""The torch engine beside busy neighbours: tokens per second by thread count and wait policy.

    PYTHONPATH=tests python -m benchmarks.torch_contention [--model 4M] [--batch 8] [--blocks 3]
        [--neighbours 0,1,2] [--cells sleeping,busy,holding]

A neighbour is another process in a pure Python loop; a cell is the thread beside the engine's loop
in this process, as a notebook's is: sleeping, in a Python loop, or in C calls that hold the GIL.
All settings run once a block, in an order that turns. `share` is the rate against the best one of
the idle machine, `cores left` the part of the machine that a fair system leaves to the engine:
with n busy ones beside t threads on c cores, min(t, max(c - n, c·t/(t + n))) of min(t, c) cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.torch_engines import Ours, Setting
from benchmarks.torch_models import SHAPES, make_model
from benchmarks.torch_profile import some_prompts

CORES = len(os.sched_getaffinity(0))
POLICIES = ("passive", "brief", "active")
Key = tuple[int, str]


def cores_left(threads: int, busy: int) -> float:
    """Of the engine's own threads, what a fair scheduler gives them."""
    return min(threads, max(CORES - busy, CORES * threads / (threads + busy)))


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    found = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)
    ]
    try:
        yield
    finally:
        for one in found:
            one.kill()
            one.wait()


def _sleep(over: threading.Event) -> None:
    over.wait()


def _spin(over: threading.Event) -> None:
    while not over.is_set():
        pass


def _hold(over: threading.Event) -> None:
    while not over.is_set():
        sum(range(2_000_000))


CELLS: dict[str, Callable[[threading.Event], None]] = {
    "sleeping": _sleep, "busy": _spin, "holding": _hold,
}  # fmt: skip


@contextlib.contextmanager
def cell(kind: str) -> Iterator[None]:
    """A thread of this process in the way that a cell is."""
    over = threading.Event()
    thread = threading.Thread(target=CELLS[kind], args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


async def measure(
    engines: dict[Key, Ours], prompts: list[list[int]], options: argparse.Namespace
) -> None:
    beside = [(count, "sleeping") for count in options.neighbours]
    beside += [(0, kind) for kind in options.cells if kind != "sleeping"]
    rates: dict[tuple[Key, tuple[int, str]], list[float]] = defaultdict(list)
    keys = list(engines)
    for block in range(-1, options.blocks):
        turn = block % len(keys)
        for where in beside:
            with neighbours(where[0]), cell(where[1]):
                for key in keys[turn:] + keys[:turn]:
                    took = await engines[key].block(prompts, options.new)
                    if block >= 0:
                        rates[key, where].append(len(prompts) * options.new / took)
    for threads, policy in keys:
        idle = statistics.median(rates[(threads, policy), beside[0]])
        for where in beside:
            busy = where[0] + (where[1] != "sleeping")
            rate = statistics.median(rates[(threads, policy), where])
            fair = cores_left(threads, busy) / cores_left(threads, 0)
            print(
                f"{threads} thread(s) {policy:8} {where[0]} neighbour(s), {where[1]:8} cell: "
                f"{rate:7,.0f} tok/s, {rate / idle:4.2f} of idle; cores left {fair:.2f}",
                flush=True,
            )


async def main(options: argparse.Namespace) -> None:
    os.environ["TQDM_DISABLE"] = "1"
    sys.setswitchinterval(5e-5)  # as the session does
    with tempfile.TemporaryDirectory() as path:
        setting = Setting(make_model(Path(path), options.model), 0, options.dtype)
        engines = {
            (threads, policy): Ours({"threads": threads, "omp_wait_policy": policy})
            for threads in options.threads
            for policy in (options.policies if threads > 1 else options.policies[:1])
        }
        print(f"{options.model}, batch {options.batch}, load average {os.getloadavg()[0]:.1f}")
        try:
            for engine in engines.values():
                await engine.start(setting)
            prompts = some_prompts(options.batch, SHAPES[options.model]["vocab_size"])
            await measure(engines, prompts, options)
        finally:
            for engine in engines.values():
                await engine.stop()


def words(text: str) -> list[str]:
    return text.split(",")


def numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=[*SHAPES], default="4M")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--threads", type=numbers, default=sorted({max(1, CORES - 1), CORES}))
    parser.add_argument("--policies", type=words, default=[*POLICIES])
    parser.add_argument("--neighbours", type=numbers, default=[0, 1, 2])
    parser.add_argument("--cells", type=words, default=[*CELLS])
    asyncio.run(main(parser.parse_args()))
