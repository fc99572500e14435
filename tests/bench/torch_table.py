"""The torch engine's table: its forms against `generate`, the memory's roof, one step's parts.

    PYTHONPATH=tests python -m bench.torch_table [--blocks 5] [--threads 2] [--batches 1,8,32]

Random Llamas are made in a temporary folder. In every block each engine runs once, through its
child process and the loop, in an order that turns from block to block; ratios are paired block by
block, so that a busy machine hits all alike.
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from bench.torch_vs_generate import engine_block, generate_block, interval
from llmserve.clock import MonotonicClock
from llmserve.core import SamplingParams
from llmserve.engines.torch.engine import TorchEngine
from support.tiny_models import save_model

SHAPES: dict[str, dict[str, int]] = {
    "4M": {
        "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4,
    },
    "235M": {
        "vocab_size": 8192, "hidden_size": 896, "intermediate_size": 2752,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    },
}
FORMS = ("auto", "general", "plain")
STEPS = 40


def make_model(folder: Path, shape: dict[str, int]) -> Path:
    from transformers import LlamaConfig

    return save_model(folder, LlamaConfig(
        **shape, max_position_embeddings=2048, bos_token_id=None, eos_token_id=2, pad_token_id=0,
    ))  # fmt: skip


def read_bandwidth() -> float:
    """Bytes per second of reading memory once, with the threads that the engines have."""
    import torch

    block = torch.ones(1 << 27, dtype=torch.int32)
    best = min(_timed(lambda: block.sum()) for _ in range(5))
    return block.numel() * 4 / best


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


async def measure(folder: Path, options: argparse.Namespace) -> dict[int, dict[str, list[float]]]:
    """Tokens per second by batch and engine, one figure a block."""
    import torch
    from transformers import AutoModelForCausalLM

    found: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    engines = {
        form: TorchEngine(
            sink=lambda _: None, clock=MonotonicClock(), model=str(folder), forward=form,
            threads=options.threads, dtype=options.dtype,
        )
        for form in FORMS
    }
    try:
        for engine in engines.values():
            await engine.start()
        info = engines["auto"].info
        print(f"{info.dtype}; auto takes: {info.details['forward']}", flush=True)
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, info.dtype))
        for batch in options.batches:
            prompts = some_prompts(batch, info.vocab_size or 256)
            names = [*engines, "generate"]
            for block in range(-1, options.blocks):
                for name in names[block % len(names) :] + names[: block % len(names)]:
                    new = 8 if block < 0 else options.new
                    if name == "generate":
                        rate = generate_block(network, prompts, new)
                    else:
                        tag = f"{name}-{batch}-{block}"
                        rate = await engine_block(engines[name], prompts, new, tag)
                    if block >= 0:
                        found[batch][name].append(rate)
    finally:
        for engine in engines.values():
            await engine.stop()
    return found


def some_prompts(batch: int, vocab_size: int) -> list[list[int]]:
    dice = random.Random(1)
    return [[dice.randrange(3, vocab_size) for _ in range(64)] for _ in range(batch)]


def print_table(found: dict[int, dict[str, list[float]]], roof: float) -> None:
    for batch, rates in found.items():
        print(f"{batch:3} at once; the memory's roof for decoding is {roof * batch:,.0f} tok/s")
        for name, figures in rates.items():
            ratio, low, high = interval(
                [ours / theirs for ours, theirs in zip(figures, rates["generate"], strict=True)]
            )
            print(
                f"    {name:9} {statistics.median(figures):8,.0f} tok/s   "
                f"{ratio:.2f} of generate (95 % {low:.2f} to {high:.2f})"
            )


@contextmanager
def clocked(spent: dict[str, float], name: str, owner: object, attribute: str) -> Iterator[None]:
    """Adds up the seconds within a function while open."""
    real = getattr(owner, attribute)

    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return real(*arguments, **named)
        finally:
            spent[name] += time.perf_counter() - start

    with mock.patch.object(owner, attribute, timed):
        yield


def profile(folder: Path, batch: int, dtype: str) -> dict[str, float]:
    """Seconds of a decode step, by part; in this process, without the child."""
    from llmserve.engines.planner import StepPlanner
    from llmserve.engines.torch import attention, compact, linears, runner
    from llmserve.engines.torch.detokenize import Detokenizer
    from llmserve.engines.torch.messages import Submit
    from llmserve.engines.torch.model import FlatModel, load
    from llmserve.engines.torch.options import parse
    from llmserve.engines.torch.tokenizer import open_tokenizer
    from llmserve.knobs import Knobs

    model = load(parse({"model": folder, "dtype": dtype}))
    planner = StepPlanner(kv_blocks=4096, block_size=16, max_model_len=model.max_model_len)
    running = runner.Runner(model, Detokenizer(open_tokenizer(folder).backend), planner, Knobs())
    sampling = SamplingParams(max_tokens=STEPS + 20, temperature=0, ignore_eos=True)
    for i, prompt in enumerate(some_prompts(batch, model.vocab_size)):
        running.handle(Submit(str(i), tuple(prompt), sampling))
    for _ in range(10):
        running.step()
    spent: dict[str, float] = defaultdict(float)
    places = [
        ("planning", planner, "plan"), ("planning", planner, "commit"),
        ("planning", planner, "record"), ("layout", runner, "layout"),
        ("forward", FlatModel, "forward"), ("sampling", runner, "draw"),
        ("replies", runner.Runner, "_advance"),
        ("linears", linears.Packed, "__call__"), ("linears", linears.Packed, "add"),
        ("linears", linears.Plain, "__call__"), ("linears", linears.Plain, "add"),
        ("attention", compact, "mix"), ("attention", attention, "mix"),
    ]  # fmt: skip
    with ExitStack() as stack:
        for name, owner, attribute in places:
            stack.enter_context(clocked(spent, name, owner, attribute))
        encode = msgspec.msgpack.Encoder().encode
        for _ in range(STEPS):
            start = time.perf_counter()
            stepped = running.step()
            spent["step"] += time.perf_counter() - start
            start = time.perf_counter()
            encode(stepped)
            spent["messages"] += time.perf_counter() - start
    return {name: seconds / STEPS for name, seconds in spent.items()}


def print_profile(spent: dict[str, float], batch: int) -> None:
    parts = dict(spent)
    step = parts.pop("step") + parts["messages"]
    parts["rest of forward"] = parts.pop("forward") - parts["linears"] - parts["attention"]
    parts["rest"] = step - sum(parts.values())
    told = ", ".join(
        f"{name} {seconds / step:.1%}"
        for name, seconds in sorted(parts.items(), key=lambda item: -item[1])
    )
    print(f"  a decode step of {batch}: {step * 1e3:.2f} ms: {told}")


async def main(options: argparse.Namespace) -> None:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ["TQDM_DISABLE"] = "1"
    import torch

    torch.set_num_threads(options.threads)
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(Path(folder), SHAPES[name])
            size = sum(file.stat().st_size for file in model.glob("*.safetensors"))  # of float32
            shape = f"{options.threads} thread(s), 64 in, {options.new} out"
            print(f"\n{name}: {shape}, greedy, ", end="")
            bandwidth = read_bandwidth()
            found = await measure(model, options)
            bandwidth = max(bandwidth, read_bandwidth())
            width = 2 if options.dtype == "bfloat16" else 4
            embedding = SHAPES[name]["vocab_size"] * SHAPES[name]["hidden_size"]
            roof = bandwidth / ((size // 4 - embedding) * width)
            print(f"memory read {bandwidth / 1e9:.1f} GB/s; load average {os.getloadavg()[0]:.1f}")
            print_table(found, roof)
            for batch in options.batches:
                print_profile(profile(model, batch, options.dtype), batch)


def numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), default=[*SHAPES])
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32])
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    asyncio.run(main(parser.parse_args()))
