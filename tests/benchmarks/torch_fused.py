"""The engine's compact forward against its fused step (numba), in one process.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 PYTHONPATH=src:tests \\
        python -m benchmarks.torch_fused [--rows 1,4,8,16,32] [--threads 2] [--busy 1]

A random Llama of the shape 235M, bfloat16; both read the same slabs, and take three steps each in
an order that turns from block to block. `roof` is how long reading the weights alone would take, at
the speed at which memory is summed in the same block. `--busy` are other processes in a Python
loop: a step should then take no longer than the cores left would have it.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.torch_contention import neighbours
from benchmarks.torch_models import CONTEXT, SHAPES, read_bytes

SHAPE = "235M"
STEPS = 3
SUMMED = 256 << 20
TOLERANCE = 5e-2
"""Of the logits' length: compact rounds to bfloat16 after each product, rows do not."""


def make_network(layers: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    told: dict[str, Any] = {**SHAPES[SHAPE], "num_hidden_layers": layers}
    config = LlamaConfig(**told, max_position_embeddings=CONTEXT)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


class Pair:
    """Both forms of one step, over the same slabs."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from llmserve.engines.torch.cpu_kernels.kernel import FusedRows
        from llmserve.engines.torch.kv.store import Geometry
        from llmserve.engines.torch.model.compact_llama import Compact
        from llmserve.engines.torch.model.packed_linears import Kernels
        from llmserve.engines.torch.model.weights import take_apart

        network = make_network(options.layers)
        config = network.config
        dim = config.hidden_size // config.num_attention_heads
        self._geometry = Geometry(
            options.layers, config.num_key_value_heads, dim, dim, torch.bfloat16,
            torch.device("cpu"),
        )  # fmt: skip
        self._vocabulary, self._context = config.vocab_size, options.context
        weights = take_apart(network, self._geometry, CONTEXT)
        start = time.perf_counter()
        self.rows = FusedRows(
            weights, most_rows=max(options.rows), most_tokens=CONTEXT,
            threads=options.threads,
        )  # fmt: skip
        self.compile_s = time.perf_counter() - start
        copied = replace(weights, layers=[*weights.layers])  # Compact empties the list
        self._compact = Compact(copied, Kernels())

    def take(self, count: int) -> None:
        """Both forms are to run `count` rows from now on, of random keys and values."""
        from llmserve.engines.torch.kv.store import KvStore
        from llmserve.engines.torch.model.batch_layout import BatchPart

        dice, owners = random.Random(1), [str(i) for i in range(count)]
        self._store = KvStore(self._geometry)
        for owner in owners:
            self._store.reserve(owner, self._context, 0)
        slab = self._store.place("0").slab
        slab.keys.normal_()
        slab.values.normal_()
        self._places = [self._store.place(owner) for owner in owners]
        self._ids = [dice.randrange(3, self._vocabulary) for _ in owners]
        self._positions = [self._context - 1 - i % 7 for i in range(count)]
        self._parts = [BatchPart(o, p, 1) for o, p in zip(owners, self._positions, strict=True)]

    def by_compact(self) -> Any:
        import torch

        from llmserve.engines.torch.model.batch_layout import arrange, layout

        batch = arrange(self._parts, self._store)
        rows = [int(part.owner) for part in batch.order]
        ids = torch.tensor([self._ids[row] for row in rows])
        positions = torch.tensor(batch.positions)
        got = self._compact(layout(batch), ids, positions, torch.arange(len(rows)))
        return got.float()[torch.tensor(rows).argsort()]

    def by_rows(self, count: int | None = None) -> Any:
        """Of the first `count` rows, or of all."""
        ids = self._ids[:count]
        return self.rows(ids, self._positions[:count], self._places[:count], [*range(len(ids))])

    def alike(self) -> tuple[float, float, bool]:
        """How far the logits are apart at most, of their length; how often the likeliest token is
        the same; and whether each bit of the first row is what it is alone."""
        its, own = self.by_compact(), self.by_rows().clone()
        off = ((its - own).norm(dim=-1) / its.norm(dim=-1)).max().item()
        agree = (its.argmax(-1) == own.argmax(-1)).float().mean().item()
        return off, agree, bool((self.by_rows(1)[0] == own[0]).all())


def measure(pair: Pair, options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of a step of both, and of the roof."""
    import torch

    big = torch.ones(SUMMED // 8, dtype=torch.int64)
    whole, embedding = SHAPES[SHAPE]["num_hidden_layers"], SHAPES[SHAPE]["hidden_size"]
    outside = 2 * embedding * (SHAPES[SHAPE]["vocab_size"] + 1)
    weights = outside + (read_bytes(SHAPE) - outside) * options.layers / whole
    forms: list[tuple[str, Callable[[], Any]]] = [
        ("compact", pair.by_compact), ("rows", pair.by_rows),
    ]  # fmt: skip
    took: dict[str, list[float]] = defaultdict(list)
    for block in range(options.blocks):
        for name, form in forms[:: -1 if block % 2 else 1]:
            for _ in range(STEPS):
                start, used = time.perf_counter(), time.process_time()
                form()
                took[name].append((time.perf_counter() - start) * 1e3)
                took[f"CPU of {name}"].append((time.process_time() - used) * 1e3)
        start = time.perf_counter()
        big.sum()
        took["roof"].append((time.perf_counter() - start) / SUMMED * weights * 1e3)
    return took


def told(figures: list[float]) -> str:
    low, middle, high = statistics.quantiles(figures, n=4)
    return f"{middle:6.1f} ({low:.1f} to {high:.1f})"


def main(options: argparse.Namespace) -> None:
    from llmserve.engines.torch.options import SPINS

    os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS["brief"]))  # read when torch is loaded
    import torch

    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        pair = Pair(options)
        print(
            f"{SHAPE}, {options.layers} layers, {options.threads} thread(s), context "
            f"{options.context}, {options.blocks} blocks, {options.busy} busy neighbour(s); "
            f"kernels there in {pair.compile_s:.1f} s; load average {os.getloadavg()[0]:.1f}\n"
            "ms a step: median (quartiles)"
        )
        for count in options.rows:
            pair.take(count)
            off, agree, same = pair.alike()
            with neighbours(options.busy):
                took = measure(pair, options)
            compact, rows, roof, cpu = (
                statistics.median(took[name])
                for name in ("compact", "rows", "roof", "CPU of rows")
            )
            print(
                f"{count:3} rows: compact {told(took['compact'])}, rows {told(took['rows'])}, "
                f"CPU {cpu:.1f}, ratio {compact / rows:.2f}, of the roof {roof / rows:.2f}; "
                f"logits {off:.2%} off at most, the likeliest the same in {agree:.0%}, "
                f"{'bit-equal' if same else 'NOT the same'} alone",
                flush=True,
            )
            if not same or not off < TOLERANCE:
                raise SystemExit("the logits are wrong")
        pair.rows.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=lambda text: [int(one) for one in text.split(",")], default=[1, 4, 8, 16, 32]
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--layers", type=int, default=SHAPES[SHAPE]["num_hidden_layers"])
    parser.add_argument("--blocks", type=int, default=20)
    main(parser.parse_args())
