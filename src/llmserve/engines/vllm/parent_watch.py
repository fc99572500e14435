"""No engine process outlives the kernel, not even one that was killed.

`Watch` travels in vLLM's configuration. Unpickling it in a child, which happens before any of
vLLM's own code runs there, starts a thread that ends the child when its parent has gone: first
by SIGTERM, which vLLM takes as a request to shut down in order, then for good.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import psutil

from llmserve.engines.process.processes import is_over

POLL_S = 0.5
GRACE_S = 4.0
FOLDER_PREFIX = "llmserve-vllm-"


class Watch(str):
    """The kernel's pid as text, because vLLM hashes its configuration as JSON."""

    def __reduce__(self) -> tuple[object, ...]:
        return arm, (str(self),)


def arm(kernel: str) -> Watch:
    """Called by unpickling: in the engine process, in its workers, and by copies in the kernel."""
    if int(kernel) != os.getpid() and not _armed():
        atexit.register(_tidy_after, int(kernel))
        threading.Thread(
            target=_watch, args=(int(kernel), os.getppid()), name=_NAME, daemon=True
        ).start()
    return Watch(kernel)


_NAME = "llmserve-parent-watch"


EARLY = """\
import os, shutil, threading, time

def watch():
    while os.getppid() == {kernel}:
        if any(one.name == {name!r} for one in threading.enumerate()):
            return
        time.sleep({poll_s})
    shutil.rmtree({folder!r}, ignore_errors=True)
    os._exit(1)

threading.Thread(target=watch, daemon=True).start()
"""
"""Of the engine process's first seconds: it imports vLLM before it unpickles a `Watch`, and has
nothing to end in order then."""


def early(kernel: int, folder: Path) -> str:
    """Python for a child of the kernel to run before all else."""
    return EARLY.format(kernel=kernel, name=_NAME, poll_s=POLL_S, folder=str(folder))


def _armed() -> bool:
    return any(thread.name == _NAME for thread in threading.enumerate())


def _watch(kernel: int, parent: int) -> None:
    """`parent` is the kernel for the engine process, and that process for its workers."""
    while os.getppid() == parent and not is_over(kernel):
        time.sleep(POLL_S)
    if is_over(kernel):
        _tidy()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


def _tidy_after(kernel: int) -> None:
    """vLLM's own watch may end this process in order before ours does."""
    if is_over(kernel):
        _tidy()


def _tidy() -> None:
    """Remove the launch's folder, which the kernel can do no more: its log, vLLM's sockets."""
    folder = Path(os.environ.get("VLLM_RPC_BASE_PATH", ""))
    if folder.name.startswith(FOLDER_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
