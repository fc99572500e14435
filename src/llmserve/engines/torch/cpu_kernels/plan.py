"""Where the kernels find what: places in their plan and in a layer's line, all int64.

Most of what stands there are addresses, which nothing checks once a step runs.
"""

from __future__ import annotations

(
    LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, DIM, VOCABULARY, EPS, SCALING, TABLE, EMBEDDING, NORM,
    HEAD, COS, SIN, ROWS, WANTED_ROWS, WANTED, IDS, POSITIONS, KEYS, VALUES, LAYER_STEPS, LENGTHS,
    RESIDUAL, QKV, MIXED, GATED, LOGITS, NORMED, NORMED_BYTES, SCRATCH, SCRATCH_BYTES, THREADS,
    COUNTERS, ARRIVED, ASLEEP, ABANDONED, SPINS, NAP, NAPS, PLAN_SIZE,
) = range(42)  # fmt: skip
"""EPS and SCALING are the bits of a float32. From WANTED to LENGTHS are arrays of int64: the rows
whose logits are wanted, and by row: token, position, the slot's address in layer 0 for keys and
for values, bytes from layer to layer, and tokens that a slot has room for."""

(
    BEFORE_ATTENTION, TO_QKV, QKV_BIAS, QUERY_NORM, KEY_NORM, TO_OUT, BEFORE_MLP, TO_GATE_UP,
    TO_DOWN, LAYER_SIZE,
) = range(10)  # fmt: skip
"""Addresses, 0 where the model has none."""

PHASES = 6
"""Of a layer: query, key and value; storing keys and values; attention; its output; gate and up;
down. Each ends when all threads have met."""
COUNTER_BYTES = 64
"""A cache line for each phase's counter."""
COLUMNS = 1024
"""Columns of a weight that a tile takes at once, so that its rows stay in the nearest cache."""
CHUNK = 32
"""Outputs of a product that a thread claims at once: the fewest that a product may have."""
PADDING = 8
"""Rows that the widest tile may read or write behind the last."""
PRODUCT_AT = 4096
"""Where in a thread's scratch its products begin."""
SCALES_BYTES = 1024


def attention_bytes(group: int, dim: int, most_tokens: int) -> int:
    """Of scratch: a group's queries, a scale for each, and scores."""
    scores = (group + PADDING) * ((most_tokens + 15) & ~15)
    return ((group + PADDING) * dim + scores) * 4 + SCALES_BYTES


def product_bytes(rows: int) -> int:
    return PRODUCT_AT + (rows + PADDING) * CHUNK * 8
