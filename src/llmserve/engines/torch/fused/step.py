"""A whole decode step of a Llama, as one call per thread that holds no GIL.

Threads claim chunks of a product's outputs one by one (fetch_add), so that a thread whose core is
taken holds up no other for longer than a chunk, and meet at a barrier after each of the five
phases of a layer: query, key and value; attention; its output; gate and up; down. Each thread
norms all rows for itself, which is less than a barrier costs. A chunk's last tile fetches the
beginning of the next chunk, or of the next phase's weight, ahead.

The residual and all that is multiplied is float32 and parted (`vectors.py`), padded by 8 rows, for
tiles read rows that there are not; keys and values are written as bfloat16 into the row's own slot.
All facts come in one array of int64, most of them addresses. Nothing is checked here: `model.py`
refuses what does not fit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from llmserve.engines.torch.fused.atoms import (
    bits_to_float,
    fetch_add,
    float_to_bits,
    floats,
    halves,
    integers,
    load_acquire,
    pause,
)  # fmt: skip
from llmserve.engines.torch.fused.vectors import (
    make_tile,
    make_weighted,
    norm_row,
    silu_mul,
    softmax_row,
)

# numba's cache looks only at the file of the cached function. After a change in vectors.py it would
# run the old kernels with the new layout, at raw addresses: so there is none, and a start compiles.
compiled = njit(nogil=True, cache=False, boundscheck=False, error_model="numpy")

(
    LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, DIM, VOCABULARY, TABLE, EMBEDDING, NORM, HEAD, COS, SIN,
    ROWS, IDS, POSITIONS, KEYS, VALUES, LAYER_STEPS, LENGTHS, RESIDUAL, QKV, MIXED, GATED, LOGITS,
    COUNTERS, BARRIER, THREADS, NORMED, SCRATCH, PLAN_SIZE,
) = range(31)  # fmt: skip
"""Places in the plan. From IDS to LENGTHS arrays of int64 by row: the slot's address in layer 0,
bytes from layer to layer, and tokens that a slot has room for."""
BEFORE_ATTENTION, TO_QKV, TO_OUT, BEFORE_MLP, TO_GATE_UP, TO_DOWN, LAYER_SIZE = range(7)
"""Places in a layer's line of the table: addresses."""

PHASES = 5
COUNTER_BYTES = 64
"""A cache line for each phase's counter."""
COLUMNS = 1024
"""Columns of a weight that a tile takes at once, so that its rows stay in the nearest cache."""
CHUNK = 32
SCRATCH_BYTES = 1 << 20
PRODUCT_AT = 4096
"""Where in a thread's scratch its products begin."""
SCALES_BYTES = 1024
SPINS = 2000
EPS = 1e-6

tile8, tile4, tile2, tile1 = make_tile(8, 2), make_tile(4, 4), make_tile(2, 4), make_tile(1, 4)
weighted4, weighted2, weighted1 = make_weighted(4), make_weighted(2), make_weighted(1)
sched_yield = types.ExternalFunction("sched_yield", types.int32())


@compiled
def multiply(
    x: int, x_step: int, rows: int, width: int, weight: int, count: int, out: int, out_step: int,
    following: int,
) -> None:  # fmt: skip
    """out[r, j] = x[r] . weight[j] for `count` (a multiple of 4) rows of a weight, plain and
    `width` wide; `following` is what will be read next. Writes up to 7 rows more than there are."""
    for r in range(rows):
        sums = floats(out + r * out_step)
        for i in range(count):
            sums[i] = np.float32(0.0)
    blocks = width // 32
    parts = (width + COLUMNS - 1) // COLUMNS
    per = (blocks + parts - 1) // parts
    step = width * 2
    for part in range(parts):
        first = part * per
        taken = min(per, blocks - first)
        at = weight + first * 64
        after = following if part + 1 == parts else at + taken * 64
        r = 0
        while r < rows:
            left = rows - r
            m = 8 if left > 4 else (4 if left > 2 else left)  # padding costs no reading
            n = 2 if m == 8 else 4
            xr = x + r * x_step + first * 128
            for o in range(0, count, n):
                one = at + o * step
                # behind the last, more rows take the same weights once more
                then = one + n * step if o + n < count else (after if r + m >= rows else at)
                ahead = then - one
                two, to = one + n // 2 * step, out + r * out_step + o * 4
                if m == 8:
                    tile8(xr, x_step, one, two, step, taken, to, out_step, ahead)
                elif m == 4:
                    tile4(xr, x_step, one, two, step, taken, to, out_step, ahead)
                elif m == 2:
                    tile2(xr, x_step, one, two, step, taken, to, out_step, ahead)
                else:
                    tile1(xr, x_step, one, two, step, taken, to, out_step, ahead)
            r += m


@compiled
def claim(plan: Any, phase: int) -> int:
    """The next chunk that nobody has; the first ones are the threads' own numbers."""
    chunk: int = fetch_add(plan[COUNTERS] + phase * COUNTER_BYTES, 1) + plan[THREADS]
    return chunk


@compiled
def meet(plan: Any, phase: int) -> None:
    """Returns when all threads have come this far. The count only grows within a step."""
    at = plan[BARRIER]
    want = (phase + 1) * plan[THREADS]
    if fetch_add(at, 1) + 1 >= want:
        return
    spins = 0
    while load_acquire(at) < want:
        pause()
        spins += 1
        if spins > SPINS:
            sched_yield()
            spins = 0


@compiled
def norm(plan: Any, weight: int, out: int) -> None:
    hidden = plan[HIDDEN]
    for r in range(plan[ROWS]):
        off = r * hidden * 4
        norm_row(plan[RESIDUAL] + off, weight, out + off, hidden, np.float32(EPS))


@compiled
def rounded(x: float) -> np.uint16:
    """The nearest bfloat16, ties to even."""
    bits = float_to_bits(x)
    return np.uint16(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF)


@compiled
def place(column: int) -> int:
    """Where a column stands when parted."""
    return (column & ~31) + (column & 1) * 16 + ((column & 31) >> 1)


@compiled
def look_up(plan: Any, row: int) -> None:
    hidden = plan[HIDDEN]
    token = integers(plan[IDS])[row]
    source = halves(plan[EMBEDDING] + token * hidden * 2)
    out = floats(plan[RESIDUAL] + row * hidden * 4)
    for i in range(hidden):
        out[place(i)] = bits_to_float(np.int32(np.uint32(source[i]) << 16))


@compiled
def turn(plan: Any, row: int, head: int, keys: int, values: int, queries: int) -> None:
    """One row's queries of a key head, turned by its position and scaled, parted to `queries`; its
    key, turned, and its value into their places."""
    dim, kv_heads, heads = plan[DIM], plan[KV_HEADS], plan[HEADS]
    group, half = heads // kv_heads, dim // 2
    at = integers(plan[POSITIONS])[row]
    own = floats(plan[QKV] + row * (heads + 2 * kv_heads) * dim * 4)
    cos, sin = floats(plan[COS] + at * half * 4), floats(plan[SIN] + at * half * 4)
    key, value = halves(keys + at * dim * 2), halves(values + at * dim * 2)
    k, v = (heads + head) * dim, (heads + kv_heads + head) * dim
    for i in range(half):
        low, high = own[k + i], own[k + half + i]
        key[i] = rounded(low * cos[i] - high * sin[i])
        key[half + i] = rounded(high * cos[i] + low * sin[i])
    for i in range(dim):
        value[i] = rounded(own[v + i])
    scale = np.float32(1.0) / np.sqrt(np.float32(dim))
    out = floats(queries)
    for h in range(group):
        q, to = (head * group + h) * dim, h * dim
        for i in range(half):
            low, high = own[q + i] * scale, own[q + half + i] * scale
            out[to + place(i)] = low * cos[i] - high * sin[i]
            out[to + place(half + i)] = high * cos[i] + low * sin[i]


@compiled
def attend(plan: Any, layer: int, row: int, head: int, scratch: int) -> None:
    """One row's heads of one key head. Scratch holds their queries, a scale each, and scores."""
    dim, kv_heads, heads = plan[DIM], plan[KV_HEADS], plan[HEADS]
    group = heads // kv_heads
    off = layer * integers(plan[LAYER_STEPS])[row] + head * integers(plan[LENGTHS])[row] * dim * 2
    keys, values = integers(plan[KEYS])[row] + off, integers(plan[VALUES])[row] + off
    turn(plan, row, head, keys, values, scratch)
    count = integers(plan[POSITIONS])[row] + 1
    step = ((count + 15) & ~15) * 4
    scaling = scratch + group * dim * 4
    scores = scaling + SCALES_BYTES
    multiply(scratch, dim * 4, group, dim, keys, (count + 3) & ~3, scores, step, keys)
    scales = floats(scaling)
    for h in range(group):
        line = floats(scores + h * step)
        for i in range(count, step // 4):
            line[i] = -np.inf
        scales[h] = softmax_row(scores + h * step, step // 64)
    out = plan[MIXED] + (row * heads + head * group) * dim * 4
    for d in range(0, dim, 32):
        h, v = 0, values + d * 2
        while h < group:
            p, at, own = scores + h * step, out + (h * dim + d) * 4, scaling + h * 4
            if group - h >= 4:
                weighted4(p, step, v, dim * 2, count, at, dim * 4, own)
                h += 4
            elif group - h >= 2:
                weighted2(p, step, v, dim * 2, count, at, dim * 4, own)
                h += 2
            else:
                weighted1(p, step, v, dim * 2, count, at, dim * 4, own)
                h += 1


@compiled
def product(
    plan: Any, phase: int, thread: int, x: int, width: int, weight: int, outputs: int, chunk: int,
    out: int, following: int, scratch: int, adds: bool,
) -> None:  # fmt: skip
    """out[r, o] = x[r] . weight[o]; where it `adds`, onto what is there, which is parted."""
    rows = plan[ROWS]
    at = scratch + PRODUCT_AT
    some, to = floats(at), floats(out)
    chunks = (outputs + chunk - 1) // chunk
    mine = thread
    while mine < chunks:
        o = mine * chunk
        count = min(chunk, outputs - o)
        mine = claim(plan, phase)
        then = weight + mine * chunk * width * 2 if mine < chunks else following
        multiply(x, width * 4, rows, width, weight + o * width * 2, count, at, chunk * 4, then)
        for r in range(rows):
            for j in range(count):
                if adds:
                    to[r * outputs + place(o + j)] += some[r * chunk + j]
                else:
                    to[r * outputs + o + j] = some[r * chunk + j]


@compiled
def gate_and_up(
    plan: Any, phase: int, thread: int, x: int, weight: int, following: int, scratch: int
) -> None:
    """silu(gate) * up, parted. A chunk is 32 outputs of each, side by side in scratch."""
    rows, hidden, inner = plan[ROWS], plan[HIDDEN], plan[INNER]
    at, step = scratch + PRODUCT_AT, CHUNK * 8
    chunks = inner // CHUNK
    mine = thread
    while mine < chunks:
        o = mine * CHUNK
        mine = claim(plan, phase)
        then = weight + mine * CHUNK * hidden * 2 if mine < chunks else following
        gate, up = weight + o * hidden * 2, weight + (inner + o) * hidden * 2
        multiply(x, hidden * 4, rows, hidden, gate, CHUNK, at, step, up)
        multiply(x, hidden * 4, rows, hidden, up, CHUNK, at + CHUNK * 4, step, then)
        for r in range(rows):
            to = plan[GATED] + (r * inner + o) * 4
            silu_mul(at + r * step, at + r * step + CHUNK * 4, to)


@compiled
def run(plan: Any, thread: int) -> None:
    """The part of a step that thread `thread` does. All must run, or those that do never end."""
    layers, hidden, inner = plan[LAYERS], plan[HIDDEN], plan[INNER]
    heads, kv_heads, dim = plan[HEADS], plan[KV_HEADS], plan[DIM]
    rows, threads, head = plan[ROWS], plan[THREADS], plan[HEAD]
    table = integers(plan[TABLE])
    scratch = plan[SCRATCH] + thread * SCRATCH_BYTES
    normed = plan[NORMED] + thread * (rows + 8) * hidden * 4
    turned, mixed = (heads + 2 * kv_heads) * dim, heads * dim
    residual = plan[RESIDUAL]
    # few rows: small chunks, or one thread waits for the other's last; many: they spare readings
    narrow = CHUNK // 2 if rows <= 8 else CHUNK
    for r in range(thread, rows, threads):
        look_up(plan, r)
    meet(plan, 0)
    phase = 1
    for layer in range(layers):
        at = layer * LAYER_SIZE
        gate_up, down = table[at + TO_GATE_UP], table[at + TO_DOWN]
        out = table[at + TO_OUT]
        norm(plan, table[at + BEFORE_ATTENTION], normed)
        product(plan, phase, thread, normed, hidden, table[at + TO_QKV], turned, CHUNK, plan[QKV],
                out + thread * narrow * mixed * 2, scratch, False)
        meet(plan, phase)
        for task in range(thread, rows * kv_heads, threads):
            attend(plan, layer, task // kv_heads, task % kv_heads, scratch)
        meet(plan, phase + 1)
        product(plan, phase + 2, thread, plan[MIXED], mixed, out, hidden, narrow, residual,
                gate_up + thread * CHUNK * hidden * 2, scratch, True)
        meet(plan, phase + 2)
        norm(plan, table[at + BEFORE_MLP], normed)
        gate_and_up(plan, phase + 3, thread, normed, gate_up, down + thread * narrow * inner * 2,
                    scratch)
        meet(plan, phase + 3)
        then = table[at + LAYER_SIZE + TO_QKV] if layer + 1 < layers else head
        product(plan, phase + 4, thread, plan[GATED], inner, down, hidden, narrow, residual,
                then + thread * CHUNK * hidden * 2, scratch, True)
        meet(plan, phase + 4)
        phase += PHASES
    norm(plan, plan[NORM], normed)
    product(plan, phase, thread, normed, hidden, head, plan[VOCABULARY], CHUNK, plan[LOGITS], head,
            scratch, False)
    meet(plan, phase)
