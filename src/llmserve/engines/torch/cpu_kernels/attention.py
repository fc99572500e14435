"""Attention of the fused step: keys and values into their slots, then each row over its own.

All keys and values of a layer are stored before anyone attends, so rows of one sequence may be in
the same step, each attending to the positions up to its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmserve.engines.torch.cpu_kernels.gemm import multiply, place
from llmserve.engines.torch.cpu_kernels.intrinsics import (
    bits_to_float,
    compiled,
    float_to_bits,
    floats,
    halves,
    integers,
)
from llmserve.engines.torch.cpu_kernels.plan import (
    COS,
    DIM,
    EPS,
    HEADS,
    KEY_NORM,
    KEYS,
    KV_HEADS,
    LAYER_SIZE,
    LAYER_STEPS,
    LENGTHS,
    MIXED,
    PADDING,
    POSITIONS,
    QKV,
    QUERY_NORM,
    SCALES_BYTES,
    SCALING,
    SIN,
    TABLE,
    VALUES,
)
from llmserve.engines.torch.cpu_kernels.vectors import make_weighted, norm_row, softmax_row

one, two, three, four = (make_weighted(m) for m in (1, 2, 3, 4))
five, six, seven, eight = (make_weighted(m) for m in (5, 6, 7, 8))


@compiled
def rounded(x: float) -> np.uint16:
    """The nearest bfloat16, ties to even."""
    bits = float_to_bits(x)
    return np.uint16(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF)


@compiled
def own(plan: Any, row: int, head: int) -> int:
    """The address of a row's query, key or value head, counted in this order."""
    dim = plan[DIM]
    at: int = plan[QKV] + (row * (plan[HEADS] + 2 * plan[KV_HEADS]) + head) * dim * 4
    return at


@compiled
def slot(plan: Any, layer: int, row: int, head: int) -> int:
    """Bytes from a row's slot in layer 0 to what belongs to this layer and head."""
    within: int = head * integers(plan[LENGTHS])[row] * plan[DIM] * 2
    return within + int(layer * integers(plan[LAYER_STEPS])[row])


@compiled
def normed(plan: Any, layer: int, which: int, at: int) -> None:
    """A query's or a key's norm, in place, where the model has one."""
    weight = integers(plan[TABLE])[layer * LAYER_SIZE + which]
    if weight != 0:
        norm_row(at, weight, at, plan[DIM], bits_to_float(np.int32(plan[EPS])))


@compiled
def keep(plan: Any, layer: int, row: int, head: int) -> None:
    """One row's key, turned by its position, and its value into their places."""
    dim, half = plan[DIM], plan[DIM] // 2
    at, off = integers(plan[POSITIONS])[row], slot(plan, layer, row, head)
    cos, sin = floats(plan[COS] + at * half * 4), floats(plan[SIN] + at * half * 4)
    key = halves(integers(plan[KEYS])[row] + off + at * dim * 2)
    value = halves(integers(plan[VALUES])[row] + off + at * dim * 2)
    k = own(plan, row, plan[HEADS] + head)
    normed(plan, layer, KEY_NORM, k)
    fresh = floats(k)
    for i in range(half):
        low, high = fresh[i], fresh[half + i]
        key[i] = rounded(low * cos[i] - high * sin[i])
        key[half + i] = rounded(high * cos[i] + low * sin[i])
    fresh = floats(own(plan, row, plan[HEADS] + plan[KV_HEADS] + head))
    for i in range(dim):
        value[i] = rounded(fresh[i])


@compiled
def ask(plan: Any, layer: int, row: int, head: int, queries: int) -> None:
    """One row's queries of a key head, turned by its position and scaled, parted to `queries`."""
    dim, half = plan[DIM], plan[DIM] // 2
    group = plan[HEADS] // plan[KV_HEADS]
    at = integers(plan[POSITIONS])[row]
    cos, sin = floats(plan[COS] + at * half * 4), floats(plan[SIN] + at * half * 4)
    scale = bits_to_float(np.int32(plan[SCALING]))
    out = floats(queries)
    for h in range(group):
        q, to = own(plan, row, head * group + h), h * dim
        normed(plan, layer, QUERY_NORM, q)
        fresh = floats(q)
        for i in range(half):
            low, high = fresh[i] * scale, fresh[half + i] * scale
            out[to + place(i)] = low * cos[i] - high * sin[i]
            out[to + place(half + i)] = high * cos[i] + low * sin[i]


@compiled
def mix(
    m: int, p: int, p_step: int, v: int, v_step: int, count: int, out: int, out_step: int,
    scales: int,
) -> None:  # fmt: skip
    """32 columns of `m` heads, which read the values once."""
    if m == 1:
        one(p, p_step, v, v_step, count, out, out_step, scales)
    elif m == 2:
        two(p, p_step, v, v_step, count, out, out_step, scales)
    elif m == 3:
        three(p, p_step, v, v_step, count, out, out_step, scales)
    elif m == 4:
        four(p, p_step, v, v_step, count, out, out_step, scales)
    elif m == 5:
        five(p, p_step, v, v_step, count, out, out_step, scales)
    elif m == 6:
        six(p, p_step, v, v_step, count, out, out_step, scales)
    elif m == 7:
        seven(p, p_step, v, v_step, count, out, out_step, scales)
    else:
        eight(p, p_step, v, v_step, count, out, out_step, scales)


@compiled
def attend(plan: Any, layer: int, row: int, head: int, scratch: int) -> None:
    """One row's heads of one key head. Scratch holds their queries, a scale each, and scores."""
    dim, heads = plan[DIM], plan[HEADS]
    group = heads // plan[KV_HEADS]
    off = slot(plan, layer, row, head)
    keys, values = integers(plan[KEYS])[row] + off, integers(plan[VALUES])[row] + off
    ask(plan, layer, row, head, scratch)
    count = integers(plan[POSITIONS])[row] + 1
    step = ((count + 15) & ~15) * 4
    scaling = scratch + (group + PADDING) * dim * 4
    scores = scaling + SCALES_BYTES
    # up to three keys more than there are: a slot's length is a multiple of 4
    multiply(scratch, dim * 4, group, dim, keys, (count + 3) & ~3, scores, step, keys)
    scales = floats(scaling)
    for h in range(group):
        line = floats(scores + h * step)
        for i in range(count, step // 4):
            line[i] = -np.inf
        scales[h] = softmax_row(scores + h * step, step // 64)
    out = plan[MIXED] + (row * heads + head * group) * dim * 4
    for d in range(0, dim, 32):
        for h in range(0, group, 8):
            mix(min(8, group - h), scores + h * step, step, values + d * 2, dim * 2, count,
                out + (h * dim + d) * 4, dim * 4, scaling + h * 4)  # fmt: skip
