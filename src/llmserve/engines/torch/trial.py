"""Whether kernels of our own are worth taking here: a decode step of some layers by both.

A CPU with tiles (AMX) may have oneDNN win. The steps are those of the engine, over enough weights
that a cache does not hold all, and what is told apart is large: a factor of two either way.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import replace

import torch

from llmserve.engines.torch.checks import Stretch, after
from llmserve.engines.torch.compact import Compact
from llmserve.engines.torch.kv import KvStore
from llmserve.engines.torch.linears import Kernels
from llmserve.engines.torch.model import FlatModel
from llmserve.engines.torch.weights import Weights

COUNTS = (1, 8)
"""Rows of the steps."""
BYTES = 128 << 20
"""Of the layers that are tried, or one more."""
HEAD = 4096
"""Outputs of the head that are computed."""
CONTEXT = 64
TURNS = 5
SLACK = 1.05
"""By how much slower the kernels may come out: what a trial's noise is."""


def beaten(model: FlatModel, weights: Weights) -> str | None:
    """In what steps packed products are faster here than `model.few`'s kernels, in words."""
    from llmserve.engines.torch.fused.rows import Rows

    tried = some(weights)
    geometry = replace(model.geometry, layers=len(tried.layers))
    few = replace(
        model, geometry=geometry, most_few=max(COUNTS),
        few=(
            rows := Rows(
                tried, most_rows=max(COUNTS), most_tokens=CONTEXT, threads=torch.get_num_threads()
            )
        ),
    )  # fmt: skip
    packed = replace(model, geometry=geometry, few=None, compute=Compact(some(weights), Kernels()))
    try:
        for count in COUNTS:
            ours, theirs = race(few, packed, count)
            if ours > SLACK * theirs:
                return f"{ours / theirs:.1f} times as slow as packed products with {count} row(s)"
    finally:
        rows.stop()
        del packed, few, rows
        give_back()
    return None


def give_back() -> None:
    """Memory that malloc keeps for later goes to the system: it was a copy of many weights."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def some(weights: Weights) -> Weights:
    """The first layers, in a list of their own."""
    layers, size = [], 0
    for layer in weights.layers:
        layers.append(layer)
        size += layer.nbytes
        if size >= BYTES:
            break
    return replace(weights, layers=layers, head=weights.head[:HEAD])


def race(one: FlatModel, other: FlatModel, count: int) -> tuple[float, float]:
    """Seconds of each one's shortest step, in turns."""
    kv = KvStore(one.geometry)
    step = [Stretch(str(i), [0] * CONTEXT, CONTEXT - 1, CONTEXT) for i in range(count)]
    took = []
    for _ in range(TURNS):
        took.append([seconds(model, kv, step) for model in (one, other)])
    mine, its = zip(*took[1:], strict=True)  # the first ones meet cold caches
    return min(mine), min(its)


def seconds(model: FlatModel, kv: KvStore, step: list[Stretch]) -> float:
    start = time.perf_counter()
    after(model, kv, step)
    return time.perf_counter() - start
