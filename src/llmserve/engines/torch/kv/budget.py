"""How many tokens of KV fit into the memory there is, and what it looks like when none is left."""

from __future__ import annotations

from pathlib import Path

import torch

from llmserve.engines.torch.kv.store import SHORTEST, SMALLEST, Geometry
from llmserve.engines.torch.options import TorchOptions

SHARE = 0.25
"""Of the memory that is free once the model is loaded."""
ROUNDING = 2
"""A slot takes up to twice its tokens, for lengths are rounded up to powers of two."""

NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "bad_alloc")


def kv_capacity(options: TorchOptions, geometry: Geometry, max_model_len: int) -> int:
    """Return the KV capacity in tokens, whole blocks.

    ValueError where max_model_len was asked for and does not fit."""
    tokens = options.kv_capacity_tokens
    if tokens is None:
        budget = options.kv_cache_memory_bytes or int(free_bytes(geometry.device) * SHARE)
        tokens = budget // (geometry.token_bytes * ROUNDING)
        if options.kv_cache_memory_bytes is None:
            tokens = min(tokens, options.max_num_seqs_ceiling * max(max_model_len, SHORTEST))
    tokens -= tokens % options.block_size
    if tokens < options.block_size:
        raise ValueError(f"the memory for KV holds less than one block of {options.block_size}")
    if options.max_model_len is not None and tokens < options.max_model_len:
        raise ValueError(
            f"max_model_len={options.max_model_len} tokens do not fit into the KV cache, which "
            f"holds {tokens}; lower it, or raise kv_cache_memory_bytes"
        )
    return tokens


def kv_budget(tokens: int, geometry: Geometry) -> int:
    """Bytes that slabs, spare slots, copies in the making and the shelf may take together where so
    many tokens are counted: a sequence of them all fits."""
    return max(SMALLEST, ROUNDING * tokens) * geometry.token_bytes


def is_shortage(error: BaseException) -> bool:
    """An allocation failed. torch has a class for that on GPUs alone, and on CPUs only words."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in NO_MEMORY)


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = (_cgroup(name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else max(0, min(free, limit - used))


def _cgroup(name: str) -> int | None:
    """A container's own figure, where it has one."""
    try:
        text = Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def device_bytes() -> int:
    """What this process holds on GPUs by torch's own count, its cache of freed blocks included."""
    count = torch.cuda.device_count()
    return sum(torch.cuda.memory_reserved(device) for device in range(count))
