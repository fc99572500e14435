"""Binds the step to a network's tensors and the engine's slabs, and its threads to each other."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import types
from torch import Tensor

from llmserve.engines.torch.fused import step
from llmserve.engines.torch.kv import Place

PADDING = 8
"""Rows that the widest tile may read behind the last."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """All bfloat16 and contiguous, a row for each output; None where the model has none."""

    before_attention: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    out: Tensor
    before_mlp: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    layers: list[LayerWeights]
    embedding: Tensor
    norm: Tensor
    head: Tensor
    cos: Tensor
    """float32 `[positions, dim / 2]`, and so is `sin`, plain."""
    sin: Tensor
    heads: int
    kv_heads: int
    dim: int
    eps: float
    scaling: float


def parted(weight: Tensor) -> Tensor:
    """float32, of every 32 columns the even ones first: the order of `vectors.py`."""
    pairs = weight.detach().float().view(-1, 16, 2)
    return pairs.transpose(1, 2).reshape(-1).contiguous()


def refuse(weights: Weights, most_rows: int, most_tokens: int) -> None:
    """ValueError for what the step would compute wrongly, or read where nothing is."""
    w, first = weights, weights.layers[0]
    group = w.heads // w.kv_heads
    scores = (group + PADDING) * (most_tokens + 15) * 4
    if any(n % 32 for n in (w.dim, w.embedding.shape[1], first.down.shape[1])):
        raise ValueError("widths must be multiples of 32")
    if w.head.shape[0] % 4:
        raise ValueError("the vocabulary must be a multiple of 4")
    if group * 4 > step.SCALES_BYTES or (
        group * w.dim * 4 + step.SCALES_BYTES + scores > step.SCRATCH_BYTES
    ):
        raise ValueError(f"{most_tokens} tokens are too many for a thread's scratch")
    if step.PRODUCT_AT + (most_rows + PADDING) * step.CHUNK * 8 > step.SCRATCH_BYTES:
        raise ValueError(f"{most_rows} rows are too many for a thread's scratch")
    if any(one is not None for one in (first.qkv_bias, first.query_norm, first.key_norm)):
        raise ValueError("biases and norms of query and key are not written yet")
    if w.eps != step.EPS or abs(w.scaling - w.dim**-0.5) > 1e-9:
        raise ValueError(f"only an eps of {step.EPS:g} and the plain scaling are written yet")


class Rows:
    """Steps of up to `most_rows` rows, each a token at its position. `stop` ends the threads.

    Keeps the weights' tensors as they are, by address."""

    def __init__(
        self, weights: Weights, *, most_rows: int, most_tokens: int, threads: int
    ) -> None:
        """ValueError, in plain words, for what cannot be computed right."""
        refuse(weights, most_rows, most_tokens)
        self._most, self._most_tokens = most_rows, most_tokens
        self._kept: list[Any] = []
        """What is only known by its address."""
        self._plan = np.zeros(step.PLAN_SIZE, np.int64)
        self._logits = torch.zeros(most_rows, weights.head.shape[0])
        self._bind_model(weights)
        self._bind_memory(weights, threads)
        step.run.compile((types.int64[::1], types.int64))
        self._starts = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._done = threading.Semaphore(0)
        self._stopped = False
        for thread, start in enumerate(self._starts, 1):
            threading.Thread(target=self._work, args=(thread, start), daemon=True).start()

    def __call__(
        self, ids: list[int], positions: list[int], places: list[Place], wanted: list[int]
    ) -> Tensor:
        """Logits in float32 of the rows `wanted`, overwritten by the next call."""
        layers = [place.slab.keys.stride(0) * 2 for place in places]
        lengths = [place.slab.length for place in places]
        if not 0 < len(ids) <= self._most or any(
            at >= min(length, self._most_tokens)
            for at, length in zip(positions, lengths, strict=True)
        ):
            raise ValueError("more rows or tokens than there is memory for")
        keys, values = (
            [one.data_ptr() + place.slot * one.stride(1) * 2 for place, one in zip(
                places, slabs, strict=True)]
            for slabs in ([p.slab.keys for p in places], [p.slab.values for p in places])
        )  # fmt: skip
        told = np.array([ids, positions, keys, values, layers, lengths], np.int64)
        self._plan[step.IDS : step.LENGTHS + 1] = [line.ctypes.data for line in told]
        self._plan[step.ROWS] = len(ids)
        self._counters.zero_()
        for start in self._starts:
            start.release()
        step.run(self._plan, 0)
        for _ in self._starts:
            self._done.acquire()
        return self._logits[wanted]

    def stop(self) -> None:
        self._stopped = True
        for start in self._starts:
            start.release()

    def _work(self, thread: int, start: threading.Semaphore) -> None:
        while True:
            start.acquire()
            if self._stopped:
                return
            step.run(self._plan, thread)
            self._done.release()

    def _bind_model(self, w: Weights) -> None:
        table = np.zeros((len(w.layers), step.LAYER_SIZE), np.int64)
        for line, layer in zip(table, w.layers, strict=True):
            line[step.BEFORE_ATTENTION] = self._keep(parted(layer.before_attention))
            line[step.TO_QKV] = self._keep(layer.qkv)
            line[step.TO_OUT] = self._keep(layer.out)
            line[step.BEFORE_MLP] = self._keep(parted(layer.before_mlp))
            line[step.TO_GATE_UP] = self._keep(layer.gate_up)
            line[step.TO_DOWN] = self._keep(layer.down)
        self._kept.append(table)
        self._plan[[step.LAYERS, step.HIDDEN, step.INNER, step.HEADS, step.KV_HEADS]] = [
            len(table), w.embedding.shape[1], w.layers[0].down.shape[1], w.heads, w.kv_heads,
        ]  # fmt: skip
        self._plan[[step.DIM, step.VOCABULARY, step.TABLE]] = [
            w.dim, w.head.shape[0], table.ctypes.data,
        ]  # fmt: skip
        for fact, tensor in (
            (step.EMBEDDING, w.embedding), (step.HEAD, w.head), (step.NORM, parted(w.norm)),
            (step.COS, w.cos), (step.SIN, w.sin), (step.LOGITS, self._logits),
        ):  # fmt: skip
            self._plan[fact] = self._keep(tensor)

    def _bind_memory(self, w: Weights, threads: int) -> None:
        rows, hidden, inner = self._most + PADDING, w.embedding.shape[1], w.layers[0].down.shape[1]
        heads = (w.heads + 2 * w.kv_heads) * w.dim
        for fact, floats in (
            (step.RESIDUAL, rows * hidden), (step.QKV, rows * heads),
            (step.MIXED, rows * w.heads * w.dim), (step.GATED, rows * inner),
            (step.NORMED, threads * rows * hidden),
            (step.SCRATCH, threads * step.SCRATCH_BYTES // 4),
        ):  # fmt: skip
            self._plan[fact] = self._keep(torch.zeros(floats))
        lines = len(w.layers) * step.PHASES + 3
        self._counters = torch.zeros(lines, step.COUNTER_BYTES // 8, dtype=torch.int64)
        """One for each phase, and the barrier's as the last."""
        self._plan[step.COUNTERS] = self._counters.data_ptr()
        self._plan[step.BARRIER] = self._counters[-1].data_ptr()
        self._plan[step.THREADS] = threads

    def _keep(self, tensor: Tensor) -> int:
        if not tensor.is_contiguous():
            raise ValueError("a weight is not laid out plainly")
        self._kept.append(tensor)
        return tensor.data_ptr()
