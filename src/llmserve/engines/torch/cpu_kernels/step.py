"""A whole step of a Llama-like model, as one call per thread that holds no GIL.

Threads claim chunks of work and meet after each of a layer's phases (`plan.PHASES`). The residual
and all that is multiplied is float32 and parted (`vectors.py`), padded by 8 rows, for tiles read
rows that there are not; keys and values are written as bfloat16 into the row's own slot. Nothing is
checked here: `limits.py` and `rows.py` refuse what does not fit.
"""

from __future__ import annotations

from typing import Any

from llmserve.engines.torch.cpu_kernels.attention import attend, keep
from llmserve.engines.torch.cpu_kernels.barrier import meet
from llmserve.engines.torch.cpu_kernels.gemm import (
    add_product,
    claim,
    gate_and_up,
    look_up,
    norm,
    norm_wanted,
    product,
)
from llmserve.engines.torch.cpu_kernels.intrinsics import compiled, integers
from llmserve.engines.torch.cpu_kernels.plan import (
    BEFORE_ATTENTION,
    BEFORE_MLP,
    CHUNK,
    DIM,
    GATED,
    HEAD,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYER_SIZE,
    LAYERS,
    LOGITS,
    MIXED,
    NORM,
    NORMED,
    NORMED_BYTES,
    PHASES,
    QKV,
    QKV_BIAS,
    ROWS,
    SCRATCH,
    SCRATCH_BYTES,
    TABLE,
    THREADS,
    TO_DOWN,
    TO_GATE_UP,
    TO_OUT,
    TO_QKV,
    VOCABULARY,
    WANTED_ROWS,
)


@compiled
def attention(
    plan: Any, thread: int, layer: int, phase: int, narrow: int, normed: int, scratch: int
) -> bool:
    """The first half of a layer; False when a thread gave up."""
    hidden, rows, threads = plan[HIDDEN], plan[ROWS], plan[THREADS]
    heads, kv_heads, dim = plan[HEADS], plan[KV_HEADS], plan[DIM]
    table = integers(plan[TABLE] + layer * LAYER_SIZE * 8)
    out, turned, mixed = table[TO_OUT], (heads + 2 * kv_heads) * dim, heads * dim
    norm(plan, table[BEFORE_ATTENTION], normed)
    product(plan, phase, thread, normed, rows, hidden, table[TO_QKV], table[QKV_BIAS], turned,
            CHUNK, plan[QKV], out + thread * narrow * mixed * 2, scratch)  # fmt: skip
    if not meet(plan, phase):
        return False
    tasks = rows * kv_heads
    for task in range(thread, tasks, threads):
        keep(plan, layer, task // kv_heads, task % kv_heads)
    if not meet(plan, phase + 1):
        return False
    task = thread
    while task < tasks:
        attend(plan, layer, task // kv_heads, task % kv_heads, scratch)
        task = claim(plan, phase + 2)
    if not meet(plan, phase + 2):
        return False
    add_product(plan, phase + 3, thread, plan[MIXED], mixed, out, narrow,
                table[TO_GATE_UP] + thread * CHUNK * hidden * 2, scratch)  # fmt: skip
    return bool(meet(plan, phase + 3))


@compiled
def mlp(
    plan: Any, thread: int, layer: int, phase: int, narrow: int, normed: int, scratch: int
) -> bool:
    """The second half of a layer; False when a thread gave up."""
    hidden, inner = plan[HIDDEN], plan[INNER]
    table = integers(plan[TABLE] + layer * LAYER_SIZE * 8)
    gate_up, down = table[TO_GATE_UP], table[TO_DOWN]
    norm(plan, table[BEFORE_MLP], normed)
    gate_and_up(plan, phase, thread, normed, gate_up, down + thread * narrow * inner * 2, scratch)
    if not meet(plan, phase):
        return False
    then = plan[HEAD]
    if layer + 1 < plan[LAYERS]:
        then = table[LAYER_SIZE + TO_QKV]
    add_product(plan, phase + 1, thread, plan[GATED], inner, down, narrow,
                then + thread * CHUNK * hidden * 2, scratch)  # fmt: skip
    return bool(meet(plan, phase + 1))


def run(at: int, thread: int) -> int:
    """The part of a step, by the plan at this address, that thread `thread` does. 0 when all is
    done, 1 when it was given up: all threads must run, or those that do wait in vain."""
    plan = integers(at)
    scratch = plan[SCRATCH] + thread * plan[SCRATCH_BYTES]
    normed = plan[NORMED] + thread * plan[NORMED_BYTES]
    # few rows: small chunks, or one thread waits for the other's last; many: they spare readings
    narrow = CHUNK // 2 if plan[ROWS] <= 8 else CHUNK
    for r in range(thread, plan[ROWS], plan[THREADS]):
        look_up(plan, r)
    if not meet(plan, 0):
        return 1
    phase = 1
    for layer in range(plan[LAYERS]):
        if not attention(plan, thread, layer, phase, narrow, normed, scratch):
            return 1
        if not mlp(plan, thread, layer, phase + 4, narrow, normed, scratch):
            return 1
        phase += PHASES
    head = plan[HEAD]
    norm_wanted(plan, plan[NORM], normed)
    product(plan, phase, thread, normed, plan[WANTED_ROWS], plan[HIDDEN], head, 0,
            plan[VOCABULARY], CHUNK, plan[LOGITS], head, scratch)  # fmt: skip
    return 0 if meet(plan, phase) else 1
