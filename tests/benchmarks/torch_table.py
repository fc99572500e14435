"""The torch engine's table: against other engines, against the memory's roof, one step's parts.

    PYTHONPATH=tests python -m benchmarks.torch_table [--llama-server PATH] [--models 4M,235M]
        [--batches 1,8,32] [--only ours,vllm] [--blocks 5] [--threads 2]

Random Llamas are made in a temporary folder; each engine runs 64 tokens in, 64 out, greedy, in a
process of its own with the same threads and dtype. In every block each engine runs once, in an
order that turns from block to block, and so is the memory's speed measured; ratios are paired
block by block, so that a busy machine hits all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks.torch_engines import Column, Rival, Setting, known, open_columns
from benchmarks.torch_models import SHAPES, make_model, read_bytes, write_gguf
from benchmarks.torch_profile import print_profile, profile, some_prompts

Rates = dict[str, list[float]]
"""By column, one figure a block: tokens per second, and as many as the memory would allow."""


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Geometric mean and its 95 % bootstrap interval."""
    dice, logs = random.Random(0), [math.log(ratio) for ratio in ratios]
    means = sorted(statistics.fmean(dice.choices(logs, k=len(logs))) for _ in range(4000))
    middle = statistics.fmean(logs)
    return math.exp(middle), math.exp(means[100]), math.exp(means[-101])


async def measure(
    columns: dict[str, Column], roof: Rival, name: str, options: argparse.Namespace
) -> None:
    found: dict[int, Rates] = defaultdict(lambda: defaultdict(list))
    names = list(columns)
    for batch in options.batches:
        prompts = some_prompts(batch, SHAPES[name]["vocab_size"])
        for column in columns.values():
            await column.block(prompts, 8)
        for block in range(options.blocks):
            turn = block % len(names)
            for one in names[turn:] + names[:turn]:
                took = await columns[one].block(prompts, options.new)
                found[batch][one].append(batch * options.new / took)
            found[batch]["roof"].append(await roof.ask(roof=1) / read_bytes(name) * batch)
        print_rates(found[batch], batch, name)


def print_rates(rates: Rates, batch: int, name: str) -> None:
    read = statistics.median(rates["roof"]) / batch * read_bytes(name) / 1e9
    load = os.getloadavg()[0]
    print(f"{batch:3} at once; memory read {read:.1f} GB/s; load average {load:.1f}")
    for one, figures in rates.items():
        line = f"    {one:13} {statistics.median(figures):8,.0f} tok/s"
        if one != "ours" and "ours" in rates:
            pairs = zip(rates["ours"], figures, strict=True)
            ratio, low, high = interval([ours / theirs for ours, theirs in pairs])
            line += f"   ours is {ratio:.2f} of it (95 % {low:.2f} to {high:.2f})"
        print(line, flush=True)


async def run(name: str, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as path:
        folder = make_model(Path(path), name)
        gguf = None
        if options.llama_server is not None and "llama" in options.only:
            try:
                gguf = write_gguf(folder, name, options.gguf_library)
            except ImportError as error:
                print(f"  no GGUF: {error}")
        setting = Setting(folder, options.threads, options.dtype, gguf, options.llama_server)
        print(
            f"\n{name}: {options.dtype}, {options.threads} thread(s), 64 in, {options.new} out, "
            f"greedy, {options.blocks} blocks; load average {os.getloadavg()[0]:.1f}", flush=True,
        )  # fmt: skip
        roof = Rival("roof")
        columns: dict[str, Column] = {}
        try:
            await roof.start(setting)
            columns = await open_columns(options.only, setting)
            await measure(columns, roof, name, options)
        finally:
            for column in (*columns.values(), roof):
                await column.stop()
        if options.profile:
            for batch in options.batches:
                print_profile(profile({"model": folder, "dtype": options.dtype}, batch), batch)


async def main(options: argparse.Namespace) -> None:
    os.environ["TQDM_DISABLE"] = "1"
    import torch

    torch.set_num_threads(options.threads)
    unknown = set(options.only) - known().keys()
    if unknown:
        raise SystemExit(f"no engine {', '.join(unknown)}; there are {', '.join(known())}")
    for name in options.models:
        await run(name, options)


def words(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=words, default=[*SHAPES])
    parser.add_argument("--only", type=words, default=[*known()], help="engines, by comma")
    parser.add_argument(
        "--batches", type=lambda text: [int(one) for one in text.split(",")], default=[1, 8, 32]
    )
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server")
    parser.add_argument("--gguf-library", type=Path, help="the folder gguf-py of llama.cpp")
    parser.add_argument("--no-profile", dest="profile", action="store_false")
    asyncio.run(main(parser.parse_args()))
