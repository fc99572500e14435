"""The CPU's instruction sets that the torch engine may use: all there are, or fewer on request.

`LLMSERVE_CPU_ISA=avx2` has an engine's process compute as on a CPU that knows no more. It lowers
and never raises: oneDNN, ATen, MKL and numba are limited by variables of their own, which they read
when they are loaded, and what the engine decides by itself asks `allows`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

from llmserve.core.validation import one_of

VARIABLE = "LLMSERVE_CPU_ISA"
ONEDNN = {
    "sse41": "SSE41",
    "avx2": "AVX2",
    "avx2_vnni": "AVX2_VNNI",
    "avx512": "AVX512_CORE",
    "avx512_vnni": "AVX512_CORE_VNNI",
    "avx512_bf16": "AVX512_CORE_BF16",
    "avx512_fp16": "AVX512_CORE_FP16",
    "amx": "AVX512_CORE_AMX",
}
"""oneDNN's word for each level, the fewest instructions first."""
LEVELS = tuple(ONEDNN)
X86 = ("x86_64", "AMD64")
FIRST_AVX512 = LEVELS.index("avx512")


def limit(environment: Mapping[str, str] = os.environ) -> str | None:
    """The level asked for, None for all that the CPU has. ValueError for a word that is none."""
    level = environment.get(VARIABLE) or None
    if level is None:
        return None
    one_of(VARIABLE, level, LEVELS)
    if platform.machine() not in X86:
        raise ValueError(
            f"{VARIABLE}={level} is for x86 CPUs, and this one is {platform.machine()}: unset it"
        )
    return level


def allows(level: str) -> bool:
    """Whether instructions of this level may be used, should the CPU have them."""
    asked = limit()
    return asked is None or LEVELS.index(level) <= LEVELS.index(asked)


def environment(level: str | None) -> dict[str, str]:
    """Return variables that limit the libraries of a new process to this level."""
    if level is None:
        return {}
    limited = {VARIABLE: level, "ONEDNN_MAX_CPU_ISA": ONEDNN[level]}
    if LEVELS.index(level) >= FIRST_AVX512:
        return limited
    avx2 = level != "sse41"
    return limited | {
        "ATEN_CPU_CAPABILITY": "avx2" if avx2 else "default",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2" if avx2 else "SSE4_2",
        "NUMBA_CPU_NAME": "x86-64-v3" if avx2 else "x86-64-v2",
        "NUMBA_CPU_FEATURES": "",  # else those of this CPU come on top
    }
