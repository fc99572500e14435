"""Tokens per second of the torch engine, child and loop included, against `model.generate`.

    python tests/bench/torch_vs_generate.py [--model FOLDER] [--blocks 10] [--batch 8]

Both run the same prompts, greedy, without an end token, with the same dtype and threads, in
alternating blocks; the ratio is paired block by block, so that a busy machine hits both.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import statistics
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

from llmserve.clock import MonotonicClock
from llmserve.core import Request, SamplingParams
from llmserve.engines.torch.engine import TorchEngine
from llmserve.models import bundled_path


async def engine_block(engine: TorchEngine, prompts: list[list[int]], new: int, tag: str) -> float:
    async def one(i: int, prompt: list[int]) -> int:
        sampling = SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True)
        request = Request(id=f"{tag}-{i}", prompt_ids=tuple(prompt), sampling=sampling, arrival=0)
        async with aclosing(engine.generate(request)) as chunks:
            return sum([len(chunk.token_ids) async for chunk in chunks])

    start = time.perf_counter()
    counts = await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts)))
    assert counts == [new] * len(prompts)
    return sum(counts) / (time.perf_counter() - start)


def generate_block(network: Any, prompts: list[list[int]], new: int) -> float:
    import torch

    ids = torch.tensor(prompts)
    start = time.perf_counter()
    with torch.inference_mode():
        out = network.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=new,
            max_new_tokens=new,
        )
    took = time.perf_counter() - start
    assert out.shape[1] == len(prompts[0]) + new
    return len(prompts) * new / took


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Geometric mean and its 95 % bootstrap interval."""
    dice, logs = random.Random(0), [math.log(ratio) for ratio in ratios]
    means = sorted(statistics.fmean(dice.choices(logs, k=len(logs))) for _ in range(4000))
    middle = statistics.fmean(logs)
    return math.exp(middle), math.exp(means[100]), math.exp(means[-101])


async def main(options: argparse.Namespace) -> None:
    threads = options.threads or max(1, len(os.sched_getaffinity(0)) - 1)
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    engine = TorchEngine(
        sink=lambda _: None, clock=MonotonicClock(), model=str(options.model), threads=threads,
        dtype=options.dtype,
    )
    await engine.start()
    try:
        dtype = getattr(torch, engine.info.dtype)
        network = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval()
        dice = random.Random(1)
        prompts = [
            [dice.randrange(3, engine.info.vocab_size or 256) for _ in range(options.prompt)]
            for _ in range(options.batch)
        ]
        print(
            f"{options.model}: {engine.info.dtype}, {threads} thread(s), batch {options.batch}, "
            f"{options.prompt} in, {options.new} out"
        )
        generate_block(network, prompts, 8)
        await engine_block(engine, prompts, 8, "warm")
        pairs = []
        for block in range(options.blocks):
            theirs = generate_block(network, prompts, options.new)
            ours = await engine_block(engine, prompts, options.new, str(block))
            pairs.append((ours, theirs))
            print(f"  {block:2}: engine {ours:7.0f} tok/s   generate {theirs:7.0f} tok/s")
    finally:
        await engine.stop()
    ratio, low, high = interval([ours / theirs for ours, theirs in pairs])
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"median engine {ours:.0f}, generate {theirs:.0f} tok/s; "
        f"ratio {ratio:.2f} (95 % {low:.2f} to {high:.2f})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=bundled_path())
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--threads", type=int, default=None)
    asyncio.run(main(parser.parse_args()))
