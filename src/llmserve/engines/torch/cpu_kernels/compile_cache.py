"""Where compiled kernels are kept between starts: compiling takes seconds, reading them does not.

numba's cache sees changes only in the file of the cached function. After a change in another it
would run old kernels on a new layout, at raw addresses. So there is a folder for each state of this
package's files, of numba and of the CPU. What lies there is unpickled and run, so it must be the
user's own and nobody else's; where it cannot be, nothing is kept.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from llvmlite import binding
from numba import config, njit

import llmserve
from llmserve.engines.torch.user_cache import cache_folder, own

OLD_FOLDERS = 3
"""Of other states, the latest used: two versions side by side need not compile in turns."""
NAME = re.compile(r"[0-9a-f]{40}")


@functools.cache
def compiled_in(folder: Path | None, function: Callable[..., Any], signature: Any) -> Any:
    """`function` compiled for this signature alone, from the folder where it is there. Once in a
    process."""
    options: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
    if folder is not None:
        before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
        try:
            cached = njit(cache=True, **options)(function)
            # numba goes elsewhere, without a word, when it cannot write into this one
            if Path(cached.stats.cache_path).is_relative_to(folder):
                cached.compile(signature)
                return cached
        except Exception:  # whatever a damaged file does to who reads it
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            config.CACHE_DIR = before
    plain = njit(**options)(function)
    plain.compile(signature)
    return plain


def kernel_folder() -> Path | None:
    """The folder for this state, made where it is not there; None where there is no safe one."""
    folder = cache_folder("kernels", state())
    if folder is None:
        return None
    try:
        os.utime(folder)
        forget_old(folder.parent, folder)
    except OSError:  # not writable
        return None
    return folder


def state() -> str:
    """All that the compiled code depends on, in a name."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    parts: list[str | bytes] = [
        llmserve.__version__, numba.__version__, llvmlite.__version__,
        sys.implementation.cache_tag or "", binding.get_host_cpu_name(),
        binding.get_host_cpu_features().flatten(),
        *(f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("NUMBA_")),
        *(part for file in files for part in (file.name, file.read_bytes())),
    ]  # fmt: skip
    whole = hashlib.sha256()
    for one in parts:
        whole.update(hashlib.sha256(one if isinstance(one, bytes) else one.encode()).digest())
    return whole.hexdigest()[:40]


def forget_old(ours: Path, current: Path) -> None:
    others = [
        one for one in ours.iterdir() if NAME.fullmatch(one.name) and one != current and own(one)
    ]
    others.sort(key=lambda one: one.stat().st_mtime, reverse=True)
    for one in others[OLD_FOLDERS:]:
        shutil.rmtree(one, ignore_errors=True)
