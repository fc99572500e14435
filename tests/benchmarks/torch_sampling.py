"""What drawing costs a step, in CPU time of one thread: 32 rows with and without penalties, biases
and cuts, after replies of few and of many tokens.

    PYTHONPATH=tests python -m benchmarks.torch_sampling [--rows 32] [--vocab 32000] [--blocks 5]

Random logits, no model. The kinds take turns; told are the least and the median of the blocks.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict
from typing import Any

from llmserve.core.types import SamplingParams

STEPS = 20
BIASED = tuple((token, 1.0) for token in range(10))
PENALISED: dict[str, Any] = {
    "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.2,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "penalties": {"temperature": 0, **PENALISED},
    "logit_bias": {"temperature": 0, "logit_bias": BIASED},
    "temperature": {"temperature": 0.8},
    "top_k, top_p, min_p": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
    "all of them": {
        "temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "logit_bias": BIASED,
        "max_tokens": 1_000_000, "min_tokens": 1_000_000, "stop_token_ids": (3, 4), **PENALISED,
    },
}  # fmt: skip


def main(options: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(options.rows, options.vocab, generator=generator) * 3
    for history in options.history:
        rows = {name: _rows(kind, options, history) for name, kind in KINDS.items()}
        took: dict[str, list[float]] = defaultdict(list)
        for _ in range(options.blocks):
            for name, its in rows.items():
                took[name].append(_step_s(logits, its))
        print(f"{options.rows} rows of {options.vocab} logits, {history} tokens so far:")
        for name, seconds in took.items():
            least, middle = min(seconds) * 1e3, statistics.median(seconds) * 1e3
            print(f"  {name:20} {least:7.2f} ms a step at least, {middle:7.2f} by the median")


def _rows(kind: dict[str, Any], options: argparse.Namespace, history: int) -> list[Any]:
    from llmserve.engines.torch.sampling.sampler import Draws

    dice, rows = random.Random(1), []
    for i in range(options.rows):
        words = [dice.randrange(options.vocab) for _ in range(history)]
        rows.append(Draws(SamplingParams(**kind), i, prompt=words[: history // 2]))
        for token in words[history // 2 :]:
            rows[-1].see(token)
    return rows


def _step_s(logits: Any, rows: list[Any]) -> float:
    from llmserve.engines.torch.sampling.sampler import draw

    start = time.process_time()
    for _ in range(STEPS):
        for row, token in zip(rows, draw(logits, rows)[0], strict=True):
            row.see(token)
    return (time.process_time() - start) / STEPS


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--history", type=int, nargs="+", default=[128, 2000])
    parser.add_argument("--blocks", type=int, default=5)
    main(parser.parse_args())
