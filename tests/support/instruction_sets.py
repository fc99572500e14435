"""What this CPU can do by itself, held to LLMSERVE_CPU_ISA: what a test may demand of oneDNN here.

LLVM says what the CPU has, so that a product of torch's that is refused without need is noticed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import textwrap
from functools import cache
from typing import Any

import torch
from llvmlite.binding import get_host_cpu_features

from llmserve.engines.torch import cpu_isa

X86 = platform.machine() in cpu_isa.X86
PATIENCE_S = 540
MISSING = {
    torch.bfloat16: "avx_ne_convert or avx512bw, avx512vl and avx512dq",
    torch.float16: "avx_ne_convert or avx512_fp16",
}
"""The instruction sets that torch names where it packs no weight of this kind."""


@cache
def has(*names: str) -> bool:
    found = get_host_cpu_features()
    return all(found.get(name, False) for name in names)


def held_to(level: str) -> str:
    """The narrower one of this level and the one that these tests are held to."""
    asked = cpu_isa.limit()
    return level if asked is None else min(level, asked, key=cpu_isa.LEVELS.index)


def packs(dtype: torch.dtype, level: str | None = None) -> bool:
    """Whether oneDNN lays out weights of this type on this CPU, held to a level."""
    if dtype == torch.float32:
        return True
    if not X86:
        half = "bf16" if dtype == torch.bfloat16 else "fp16"
        return bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{half}_supported")())
    if level is None and has("avxneconvert"):
        return True
    if dtype == torch.bfloat16:
        return reaches(level, "avx512") and has("avx512bw", "avx512vl", "avx512dq")
    return reaches(level, "avx512_fp16") and has("avx512fp16")


def sums_bytes(level: str | None = None) -> bool:
    """Whether it has VNNI, which sums products of bytes in 32 bits."""
    small = level in (None, "avx2_vnni") and has("avxvnni")
    return small or (reaches(level, "avx512_vnni") and has("avx512vnni"))


def multiplies_bfloat16(level: str | None = None) -> bool:
    tiles = reaches(level, "amx") and has("amx-tile")
    return tiles or (reaches(level, "avx512_bf16") and has("avx512bf16"))


def reaches(level: str | None, wanted: str) -> bool:
    return level is None or cpu_isa.LEVELS.index(level) >= cpu_isa.LEVELS.index(wanted)


def run_held(level: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, held to this level from its start."""
    environment = os.environ | cpu_isa.environment(level) | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        [sys.executable, *arguments], env=environment, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_S,
    )  # fmt: skip


def printed(level: str, code: str, **variables: str) -> tuple[Any, list[str]]:
    """What `code` prints as JSON in its last line, and the lines before it."""
    done = run_held(level, "-c", textwrap.dedent(code), **variables)
    assert done.returncode == 0, done.stdout
    *lines, last = done.stdout.splitlines()
    return json.loads(last), lines
