"""Binds the step to a network's tensors and the engine's slabs, and its threads to each other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmserve.engines.torch.cpu_kernels import plan, waiting
from llmserve.engines.torch.cpu_kernels.compile_cache import (
    Kernel,
    compiled_in,
    kernel_folder,
)
from llmserve.engines.torch.cpu_kernels.limits import refuse, refuse_rows, refuse_slab
from llmserve.engines.torch.cpu_kernels.thread_pool import ThreadPool
from llmserve.engines.torch.kv.store import Place, Slab
from llmserve.engines.torch.model.weights import Weights

TIMED_TURNS = 1000
_HERE = "llmserve.engines.torch.cpu_kernels"


class FusedRows:
    """Steps of up to `most_rows` rows, each a token at its position. `stop` ends the threads.

    A row attends to the positions up to its own: rows of one sequence may be in one step, as those
    of a prompt are. Weights stay the tensors that they are, and are read by address.
    """

    def __init__(self, weights: Weights, *, most_rows: int, most_tokens: int, threads: int) -> None:
        """ValueError, in plain words, for what cannot be computed right."""
        refuse(weights, most_rows, most_tokens, threads)
        self._weights, self._most_rows, self._most_tokens = weights, most_rows, most_tokens
        self._kept: list[Any] = []
        """What is only known by its address."""
        self._plan = np.zeros(plan.PLAN_SIZE, np.int64)
        self._plan_at = self._plan.ctypes.data
        self._logits = torch.zeros(most_rows, weights.vocabulary)
        self._bind_model()
        self._bind_memory(threads)
        folder = kernel_folder()
        self._bind_waiting(compiled_in(folder, f"{_HERE}.barrier:spin", 2))
        self._run: Callable[[int, int], int] = compiled_in(folder, f"{_HERE}.step:run", 2)
        self._pool = ThreadPool(threads, self._work, self._abandon, 2 * waiting.PATIENCE_S)

    def __call__(
        self, ids: list[int], positions: list[int], places: list[Place], wanted: list[int]
    ) -> Tensor:
        """Logits in float32 of the rows `wanted`, overwritten by the next call. Of the positions
        before a row's own, those that have no row in this step must have had one in an earlier
        one. ValueError for rows that there is no memory for; RuntimeError when threads failed."""
        refuse_rows(
            ids, positions, places, wanted, most_rows=self._most_rows,
            most_tokens=self._most_tokens, vocabulary=self._weights.embedding.shape[0],
        )  # fmt: skip
        slabs = {id(place.slab): place.slab for place in places}
        at = {key: self._addresses(slab) for key, slab in slabs.items()}
        slots = [(*at[id(place.slab)], place.slot) for place in places]
        facts = np.array(
            [
                ids, positions,
                [keys + slot * size for keys, _, size, _, _, slot in slots],
                [values + slot * size for _, values, size, _, _, slot in slots],
                [layer for *_, layer, _, _ in slots], [length for *_, length, _ in slots],
            ],
            np.int64,
        )  # fmt: skip
        which = np.array(wanted, np.int64)
        self._plan[plan.IDS : plan.LENGTHS + 1] = [line.ctypes.data for line in facts]
        self._plan[plan.WANTED] = which.ctypes.data
        self._plan[plan.ROWS], self._plan[plan.WANTED_ROWS] = len(ids), len(wanted)
        self._counters.zero_()
        self._pool.run()
        return self._logits[: len(wanted)]

    def stop(self) -> None:
        """From any thread: a step under way is given up, with an error for its caller."""
        self._pool.stop()

    def _work(self, thread: int) -> int:
        return self._run(self._plan_at, thread)

    def _abandon(self) -> None:
        self._abandoned.fill_(1)

    def _addresses(self, slab: Slab) -> tuple[int, int, int, int, int]:
        """Of keys and values, then bytes from slot to slot and layer to layer, and the length."""
        refuse_slab(self._weights, slab)
        keys = slab.keys
        sizes = keys.stride(1) * 2, keys.stride(0) * 2
        return keys.data_ptr(), slab.values.data_ptr(), *sizes, slab.length

    def _bind_model(self) -> None:
        w = self._weights
        table = np.zeros((len(w.layers), plan.LAYER_SIZE), np.int64)
        for line, layer in zip(table, w.layers, strict=True):
            for fact, tensor in (
                (plan.BEFORE_ATTENTION, parted(layer.before_attention)), (plan.TO_QKV, layer.qkv),
                (plan.QKV_BIAS, plain(layer.qkv_bias)), (plan.QUERY_NORM, plain(layer.query_norm)),
                (plan.KEY_NORM, plain(layer.key_norm)), (plan.TO_OUT, layer.out),
                (plan.BEFORE_MLP, parted(layer.before_mlp)), (plan.TO_GATE_UP, layer.gate_up),
                (plan.TO_DOWN, layer.down),
            ):  # fmt: skip
                line[fact] = 0 if tensor is None else self._keep(tensor)
        self._kept.append(table)
        for number, value in (
            (plan.LAYERS, len(table)), (plan.HIDDEN, w.hidden), (plan.INNER, w.inner),
            (plan.HEADS, w.heads), (plan.KV_HEADS, w.kv_heads), (plan.DIM, w.dim),
            (plan.VOCABULARY, w.vocabulary), (plan.EPS, bits(w.eps)),
            (plan.SCALING, bits(w.scaling)), (plan.TABLE, table.ctypes.data),
        ):  # fmt: skip
            self._plan[number] = value
        for fact, tensor in (
            (plan.EMBEDDING, w.embedding), (plan.HEAD, w.head), (plan.NORM, parted(w.norm)),
            (plan.COS, w.cos), (plan.SIN, w.sin), (plan.LOGITS, self._logits),
        ):  # fmt: skip
            self._plan[fact] = self._keep(tensor)

    def _bind_memory(self, threads: int) -> None:
        w, rows = self._weights, self._most_rows + plan.PADDING
        scratch = max(
            plan.attention_bytes(w.heads // w.kv_heads, w.dim, self._most_tokens),
            plan.product_bytes(self._most_rows),
        )
        scratch, normed = paged(scratch), paged(rows * w.hidden * 4)
        self._plan[[plan.SCRATCH_BYTES, plan.NORMED_BYTES]] = scratch, normed
        self._plan[plan.THREADS] = threads
        for fact, size in (
            (plan.RESIDUAL, rows * w.hidden * 4), (plan.QKV, rows * w.turned * 4),
            (plan.MIXED, rows * w.heads * w.dim * 4), (plan.GATED, rows * w.inner * 4),
            (plan.NORMED, threads * normed), (plan.SCRATCH, threads * scratch),
        ):  # fmt: skip
            self._plan[fact] = self._keep(torch.zeros(size, dtype=torch.uint8))

    def _bind_waiting(self, spin: Kernel) -> None:
        phases = len(self._weights.layers) * plan.PHASES + 2
        line = plan.COUNTER_BYTES // 8
        self._counters = torch.zeros(phases + 2, line, dtype=torch.int64)
        """One for each phase; the last two are those who came to it and those asleep."""
        self._abandoned = torch.zeros(line, dtype=torch.int64)
        nap = np.array([0, int(waiting.NAP_S * 1e9)], np.int64)
        self._kept.append(nap)
        self._plan[plan.COUNTERS] = self._counters.data_ptr()
        self._plan[[plan.ARRIVED, plan.ASLEEP]] = [one.data_ptr() for one in self._counters[-2:]]
        self._plan[plan.ABANDONED] = self._abandoned.data_ptr()
        self._plan[[plan.NAP, plan.NAPS]] = (
            nap.ctypes.data, int(waiting.PATIENCE_S / waiting.NAP_S),
        )  # fmt: skip
        took = []
        for _ in range(5):
            start = time.perf_counter()
            spin(self._abandoned.data_ptr(), TIMED_TURNS)
            took.append(time.perf_counter() - start)
        self._plan[plan.SPINS] = int(waiting.SPIN_S * TIMED_TURNS / min(took)) + 1

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


def parted(weight: Tensor) -> Tensor:
    """float32, of every 32 columns the even ones first: the order of `vectors.py`."""
    pairs = weight.detach().float().view(-1, 16, 2)
    return pairs.transpose(1, 2).reshape(-1).contiguous()


def plain(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.detach().float().contiguous()


def bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))


def paged(size: int) -> int:
    """In whole pages, lest two threads write to one cache line."""
    return (size + 4095) & ~4095
