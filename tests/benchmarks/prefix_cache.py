"""What prefix caching wins where prompts share a beginning, and costs where they do not.

    PYTHONPATH=tests python -m benchmarks.prefix_cache [--model 235M] [--blocks 5] [--requests 16]
        [--at-once 4] [--shared 448] [--own 32] [--new 32] [--groups 2] [--threads 2]

Two torch engines over the same random Llama, one with the cache and one without, take turns: in
each block both run the same requests, new ones to both, and whoever goes first changes. A block's
requests begin with one of a few shared beginnings, or (the second table) with one of their own.
TTFT is from the call to the first chunk, in a closed loop of `--at-once` callers; times are
through the child process and the loop. Greedy replies are compared: in float32 all are equal, in
bfloat16 near-ties may fall the other way.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks.torch_models import SHAPES, make_model
from benchmarks.torch_table import interval
from llmserve.core.clock import MonotonicClock
from llmserve.core.types import Chunk, Request, SamplingParams
from llmserve.engines.torch.engine import TorchEngine

Prompts = list[tuple[int, ...]]


@dataclass(frozen=True)
class Told:
    tokens: tuple[int, ...]
    ttft_s: float
    cached: int


def prompts(options: argparse.Namespace, vocabulary: int, salt: int, *, shared: bool) -> Prompts:
    dice = random.Random(salt)

    def some(count: int) -> tuple[int, ...]:
        return tuple(dice.randrange(3, vocabulary) for _ in range(count))

    heads = [some(options.shared) for _ in range(options.groups if shared else options.requests)]
    return [heads[i % len(heads)] + some(options.own) for i in range(options.requests)]


async def ask(engine: TorchEngine, request: Request) -> Told:
    start, chunks = time.perf_counter(), list[tuple[float, Chunk]]()
    await engine.generate(request, lambda chunk: chunks.append((time.perf_counter(), chunk)))
    return Told(
        tuple(token for _, chunk in chunks for token in chunk.token_ids),
        chunks[0][0] - start,
        sum(chunk.cached_tokens for _, chunk in chunks),
    )


async def block(
    engine: TorchEngine, given: Prompts, options: argparse.Namespace
) -> tuple[float, list[Told]]:
    """Tokens of replies per second, and what each request was told."""
    left = list(enumerate(given))
    told: dict[int, Told] = {}

    async def caller() -> None:
        while left:
            i, prompt = left.pop(0)
            sampling = SamplingParams(max_tokens=options.new, temperature=0, ignore_eos=True)
            one = Request(id=f"r{i}", prompt_ids=prompt, sampling=sampling, arrival=0)
            told[i] = await ask(engine, one)

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(options.at_once)))
    took = time.perf_counter() - start
    return len(given) * options.new / took, [told[i] for i in range(len(given))]


async def compare(
    engines: dict[str, TorchEngine], options: argparse.Namespace, *, shared: bool
) -> None:
    vocabulary = SHAPES[options.model]["vocab_size"]
    rates: dict[str, list[float]] = defaultdict(list)
    ttfts: dict[str, list[float]] = defaultdict(list)
    same = cached = 0
    for number in range(-1, options.blocks):
        given = prompts(options, vocabulary, 2 * number + shared, shared=shared)
        order = list(engines) if number % 2 else list(reversed(engines))
        replies: dict[str, list[Told]] = {}
        for name in order:
            rate, replies[name] = await block(engines[name], given, options)
            if number >= 0:  # the first block warms up
                rates[name].append(rate)
                ttfts[name].append(statistics.median(one.ttft_s for one in replies[name]))
        if number >= 0:
            pairs = zip(replies["with"], replies["without"], strict=True)
            same += sum(one.tokens == other.tokens for one, other in pairs)
            cached += sum(one.cached for one in replies["with"])
        for engine in engines.values():
            await engine.reset_cache()
    every = options.blocks * options.requests
    print(f"\n{'shared beginnings' if shared else 'no two prompts alike'}")
    for name in engines:
        rate, ttft = statistics.median(rates[name]), statistics.median(ttfts[name])
        print(f"    {name:8} {rate:8,.0f} tok/s   TTFT {1e3 * ttft:8,.0f} ms (median)")
    for what, more, less in (
        ("tok/s", rates["with"], rates["without"]), ("1/TTFT", ttfts["without"], ttfts["with"]),
    ):  # fmt: skip
        ratio, low, high = interval([a / b for a, b in zip(more, less, strict=True)])
        print(f"    {what:8} × {ratio:.2f} with the cache (95 % {low:.2f} to {high:.2f})")
    share = cached / (every * (options.shared + options.own))
    print(f"    {share:.0%} of prompt tokens cached; {same} of {every} replies equal")


async def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as path:
        folder = make_model(Path(path), options.model)
        print(
            f"{options.model}: {options.dtype}, {options.threads} thread(s), {options.shared} + "
            f"{options.own} tokens in, {options.new} out, {options.requests} requests a block, "
            f"{options.at_once} at once; load average {os.getloadavg()[0]:.1f}"
        )
        engines = {
            name: TorchEngine(
                sink=lambda _: None, clock=MonotonicClock(), model=str(folder),
                dtype=options.dtype, threads=options.threads, enable_prefix_caching=on,
                max_model_len=1024, kv_capacity_tokens=32_768,
            )
            for name, on in (("with", True), ("without", False))
        }
        try:
            for engine in engines.values():
                await engine.start()
            for shared in (True, False):
                await compare(engines, options, shared=shared)
        finally:
            for engine in engines.values():
                await engine.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="235M", choices=[*SHAPES])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    for name, usual in (
        ("blocks", 5), ("requests", 16), ("at-once", 4), ("shared", 448), ("own", 32),
        ("new", 32), ("groups", 2), ("threads", len(os.sched_getaffinity(0))),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=usual)
    asyncio.run(main(parser.parse_args()))
