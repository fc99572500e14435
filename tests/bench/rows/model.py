"""Binds the step to a network's tensors and the engine's slabs, and its threads to each other."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from numba import types
from torch import Tensor

from bench.rows import step
from llmserve.engines.torch.kv import Place

PADDING = 8
"""Rows that the widest tile may read behind the last."""


def parted(weight: Tensor) -> Tensor:
    """float32, of every 32 columns the even ones first: the order of `vectors.py`."""
    pairs = weight.detach().float().view(-1, 16, 2)
    return pairs.transpose(1, 2).reshape(-1).contiguous()


def refuse(config: Any, network: Any, most_tokens: int, most: int) -> None:
    """ValueError for what the step would compute wrongly, or read where nothing is."""
    dim = config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_key_value_heads
    scores = (group + PADDING) * (most_tokens + 15) * 4
    if any(n % 32 for n in (dim, config.hidden_size, config.intermediate_size)):
        raise ValueError("widths must be multiples of 32")
    if config.vocab_size % 4:
        raise ValueError("the vocabulary must be a multiple of 4")
    if group * 4 > step.SCALES_BYTES or (
        group * dim * 4 + step.SCALES_BYTES + scores > step.SCRATCH_BYTES
    ):
        raise ValueError(f"{most_tokens} tokens are too many for a thread's scratch")
    if step.PRODUCT_AT + (most + PADDING) * step.CHUNK * 8 > step.SCRATCH_BYTES:
        raise ValueError(f"{most} rows are too many for a thread's scratch")
    if any(name.endswith(".bias") for name, _ in network.named_parameters()):
        raise ValueError("biases are not written yet")
    if config.model_type != "llama" or config.rms_norm_eps != step.EPS:
        raise ValueError(f"only Llamas with an eps of {step.EPS:g} are written yet")


class Rows:
    """A decode step for up to `most` rows: logits of all. `stop` ends its threads.

    Made before `Compact`, which takes the network apart. Weights stay plain and bfloat16.
    """

    def __init__(self, network: Any, most_tokens: int, threads: int, most: int) -> None:
        config, body = network.config, network.model
        refuse(config, network, most_tokens, most)
        self._most, self._most_tokens = most, most_tokens
        self._kept: list[Any] = []
        """What is only known by its address."""
        self._plan = np.zeros(step.PLAN_SIZE, np.int64)
        self._logits = torch.zeros(most, config.vocab_size)
        self._bind_model(config, body, network.lm_head.weight.detach())
        self._bind_memory(config, threads)
        step.run.compile((types.int64[::1], types.int64))
        self._starts = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._done = threading.Semaphore(0)
        self._stopped = False
        for thread, start in enumerate(self._starts, 1):
            threading.Thread(target=self._work, args=(thread, start), daemon=True).start()

    def __call__(self, ids: list[int], positions: list[int], places: list[Place]) -> Tensor:
        """One token each; the result is overwritten by the next call."""
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
        return self._logits[: len(ids)]

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

    def _bind_model(self, config: Any, body: Any, head: Tensor) -> None:
        table = np.zeros((len(body.layers), step.LAYER_SIZE), np.int64)
        for line, layer in zip(table, body.layers, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            qkv = [one.weight for one in (attention.q_proj, attention.k_proj, attention.v_proj)]
            line[step.BEFORE_ATTENTION] = self._keep(parted(layer.input_layernorm.weight))
            line[step.TO_QKV] = self._keep(torch.cat(qkv).detach())
            line[step.TO_OUT] = self._keep(attention.o_proj.weight.detach())
            line[step.BEFORE_MLP] = self._keep(parted(layer.post_attention_layernorm.weight))
            both = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight))
            line[step.TO_GATE_UP] = self._keep(both.detach())
            line[step.TO_DOWN] = self._keep(mlp.down_proj.weight.detach())
        self._kept.append(table)
        dim = config.hidden_size // config.num_attention_heads
        like = torch.empty(0, dtype=torch.bfloat16)
        angles = body.rotary_emb(like, torch.arange(self._most_tokens)[None])
        cos, sin = (one[0, :, : dim // 2].float().contiguous() for one in angles)
        self._plan[[step.LAYERS, step.HIDDEN, step.INNER, step.HEADS, step.KV_HEADS]] = [
            len(table), config.hidden_size, config.intermediate_size,
            config.num_attention_heads, config.num_key_value_heads,
        ]  # fmt: skip
        self._plan[[step.DIM, step.VOCABULARY, step.TABLE]] = [
            dim, config.vocab_size, table.ctypes.data,
        ]  # fmt: skip
        for fact, tensor in (
            (step.EMBEDDING, body.embed_tokens.weight.detach()), (step.HEAD, head),
            (step.NORM, parted(body.norm.weight)), (step.COS, cos), (step.SIN, sin),
            (step.LOGITS, self._logits),
        ):  # fmt: skip
            self._plan[fact] = self._keep(tensor)

    def _bind_memory(self, config: Any, threads: int) -> None:
        rows, hidden = self._most + PADDING, config.hidden_size
        kv = hidden // config.num_attention_heads * config.num_key_value_heads
        for fact, floats in (
            (step.RESIDUAL, rows * hidden), (step.QKV, rows * (hidden + 2 * kv)),
            (step.MIXED, rows * hidden), (step.GATED, rows * config.intermediate_size),
            (step.NORMED, threads * rows * hidden),
            (step.SCRATCH, threads * step.SCRATCH_BYTES // 4),
        ):  # fmt: skip
            self._plan[fact] = self._keep(torch.zeros(floats))
        lines = config.num_hidden_layers * step.PHASES + 3
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
