"""Whether kernels of our own are worth taking here: a decode step of some layers by both.

A CPU with tiles (AMX) may have oneDNN win. The steps are those of the engine, over enough weights
that a cache does not hold all, and what is distinguished is large: a factor of two either way.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import inf

import torch

from llmserve.engines.torch.kv.store import KvStore
from llmserve.engines.torch.model.compact_llama import Compact
from llmserve.engines.torch.model.flat_model import FlatModel
from llmserve.engines.torch.model.packed_linears import Kernels
from llmserve.engines.torch.model.verify import Stretch, after
from llmserve.engines.torch.model.weights import Weights

COUNTS = (1, 8)
"""Rows of the decode steps."""
PROMPT = 128
MANY_BYTES, FEW_BYTES = 128 << 20, 16 << 20
"""Of the layers that are tried, or one more: what a cache does not hold, for steps that wait for
memory; and what is enough for those that do not."""
HEAD = 4096
"""Outputs of the head that are computed."""
CONTEXT = 64
TURNS = 5
SLACK = 1.05
"""By how much slower the kernels may come out: what a trial's noise is."""


def slow_steps(model: FlatModel, weights: Weights) -> str | None:
    """In what decode steps packed products are faster here than kernels of our own, in words."""
    tried = some(weights, MANY_BYTES)
    with by_kernels(model, tried) as few:
        packed = replace(few, few=None, compute=Compact(some(tried), Kernels()))
        for count in COUNTS:
            decodes = [Stretch(str(i), [0] * CONTEXT, CONTEXT - 1, CONTEXT) for i in range(count)]
            ours, theirs = race(few, packed, decodes, TURNS)
            if ours > SLACK * theirs:
                return f"{ours / theirs:.1f} times as slow as packed products with {count} row(s)"
    return None


def slow_prompts(model: FlatModel, weights: Weights, wide: int | None) -> bool:
    """Whether torch is faster with many rows, in float32 where it is wide enough for that."""
    tried = some(weights, FEW_BYTES)
    with by_kernels(model, tried) as few:
        plain = Kernels(None if wide is None else 1, plain=True)
        by_torch = replace(few, few=None, compute=Compact(tried, plain))
        ours, theirs = race(few, by_torch, [Stretch("prompt", [0] * PROMPT, 0, PROMPT)], 3)
    return ours > SLACK * theirs


@contextmanager
def by_kernels(model: FlatModel, tried: Weights) -> Iterator[FlatModel]:
    """A model of these layers, all its steps by kernels."""
    from llmserve.engines.torch.cpu_kernels.kernel import FusedRows

    threads = torch.get_num_threads()
    rows = FusedRows(tried, most_rows=PROMPT, most_tokens=PROMPT, threads=threads)
    geometry = replace(model.geometry, layers=len(tried.layers))
    try:
        yield replace(model, geometry=geometry, few=rows, most_few=PROMPT)
    finally:
        rows.stop()


def give_back() -> None:
    """Memory that malloc keeps for later goes to the system: it was a copy of many weights."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def some(weights: Weights, enough: float = inf) -> Weights:
    """The first layers, in a list of their own."""
    layers, size = [], 0
    for layer in weights.layers:
        layers.append(layer)
        size += layer.nbytes
        if size >= enough:
            break
    return replace(weights, layers=layers, head=weights.head[:HEAD])


def race(
    one: FlatModel, other: FlatModel, step: list[Stretch], turns: int
) -> tuple[float, float]:
    """Seconds of each one's shortest step, in turns."""
    kv = KvStore(one.geometry)
    took = [[seconds(model, kv, step) for model in (one, other)] for _ in range(turns)]
    mine, its = zip(*took[1:], strict=True)  # the first ones meet cold caches
    return min(mine), min(its)


def seconds(model: FlatModel, kv: KvStore, step: list[Stretch]) -> float:
    start = time.perf_counter()
    after(model, kv, step)
    return time.perf_counter() - start
