"""Rows times a weight, by chunks of outputs that threads claim one by one (fetch_add), so that a
thread whose core is taken holds up no other for longer than a chunk.

A chunk's last tile fetches the beginning of the next chunk, or of the next phase's weight, ahead.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmserve.engines.torch.cpu_kernels.intrinsics import (
    bits_to_float,
    compiled,
    fetch_add,
    floats,
    halves,
    integers,
)
from llmserve.engines.torch.cpu_kernels.plan import (
    CHUNK,
    COLUMNS,
    COUNTER_BYTES,
    COUNTERS,
    EMBEDDING,
    EPS,
    GATED,
    HIDDEN,
    IDS,
    INNER,
    PRODUCT_AT,
    RESIDUAL,
    ROWS,
    THREADS,
    WANTED,
    WANTED_ROWS,
)
from llmserve.engines.torch.cpu_kernels.vectors import make_tile, norm_row, silu_mul

tile8, tile4, tile2, tile1 = make_tile(8, 2), make_tile(4, 4), make_tile(2, 4), make_tile(1, 4)


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
def norm(plan: Any, weight: int, out: int) -> None:
    """Of all rows: each thread does it for itself, which takes less than a barrier."""
    step, eps = plan[HIDDEN] * 4, bits_to_float(np.int32(plan[EPS]))
    for r in range(plan[ROWS]):
        norm_row(plan[RESIDUAL] + r * step, weight, out + r * step, plan[HIDDEN], eps)


@compiled
def norm_wanted(plan: Any, weight: int, out: int) -> None:
    """Of the rows whose logits are wanted, one behind the other."""
    step, eps = plan[HIDDEN] * 4, bits_to_float(np.int32(plan[EPS]))
    wanted = integers(plan[WANTED])
    for i in range(plan[WANTED_ROWS]):
        norm_row(plan[RESIDUAL] + wanted[i] * step, weight, out + i * step, plan[HIDDEN], eps)


@compiled
def product(
    plan: Any, phase: int, thread: int, x: int, rows: int, width: int, weight: int, bias: int,
    outputs: int, chunk: int, out: int, following: int, scratch: int,
) -> None:  # fmt: skip
    """out[r, o] = x[r] . weight[o] + bias[o]. The last chunk begins early rather than being
    smaller, so some outputs may be made twice, the same both times."""
    at = scratch + PRODUCT_AT
    some, to, more = floats(at), floats(out), floats(bias)
    chunks = (outputs + chunk - 1) // chunk
    mine = thread
    while mine < chunks:
        o = min(mine * chunk, outputs - chunk)
        mine = claim(plan, phase)
        then = weight + mine * chunk * width * 2 if mine < chunks else following
        multiply(x, width * 4, rows, width, weight + o * width * 2, chunk, at, chunk * 4, then)
        for r in range(rows):
            for j in range(chunk):
                to[r * outputs + o + j] = some[r * chunk + j]
            if bias != 0:
                for j in range(chunk):
                    to[r * outputs + o + j] += more[o + j]


@compiled
def add_product(
    plan: Any, phase: int, thread: int, x: int, width: int, weight: int, chunk: int,
    following: int, scratch: int,
) -> None:  # fmt: skip
    """Onto the residual, which is parted, of all rows."""
    rows, hidden = plan[ROWS], plan[HIDDEN]
    at = scratch + PRODUCT_AT
    some, to = floats(at), floats(plan[RESIDUAL])
    chunks = hidden // chunk
    mine = thread
    while mine < chunks:
        o = mine * chunk
        mine = claim(plan, phase)
        then = weight + mine * chunk * width * 2 if mine < chunks else following
        multiply(x, width * 4, rows, width, weight + o * width * 2, chunk, at, chunk * 4, then)
        for r in range(rows):
            for j in range(chunk):
                to[r * hidden + place(o + j)] += some[r * chunk + j]


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
