"""Start-up options of a vLLM that is quick to start and to exhaust."""

from __future__ import annotations

import os
from typing import Any

OPTIONS: dict[str, Any] = {
    "model": os.environ.get("LLMSERVE_TEST_MODEL"),  # None: the bundled one
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs_ceiling": 32,
    "max_num_batched_tokens_ceiling": 1024,
    "kv_cache_memory_bytes": 1 << 28,
}
