"""Servers as processes of their own, for the time of a measurement."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import psutil

KEY = "sk-bench"
_START_S = 300.0
_END_S = 20.0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def llmserve(python: str, model: str, port: int, engine: str, *words: str) -> list[str]:
    """The command line of our own server."""
    return [
        python, "-m", "llmserve.entrypoints.cli.main", "serve", model,
        "--engine", engine, "--port", str(port),
        "--api-key", KEY, *words,
    ]  # fmt: skip


@contextlib.contextmanager
def running(
    command: Sequence[str], health: str, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Once it answers at `health` with 200; all its processes are ended at the end. In the session
    of its caller, for the kernel shares the cores out among sessions."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | (env or {}))
        try:
            _wait_for(process, health, log)
            yield process
        finally:
            end(process)


def _wait_for(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    until = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.3)
    log.seek(0)
    words = log.read()[-3000:].decode(errors="replace")
    raise SystemExit(f"{process.args!r} did not start:\n{words}")


def end(process: subprocess.Popen[bytes]) -> None:
    """It and all its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.kill()
    process.wait()


def machine() -> str:
    """In words that name no one: what a reader needs to weigh the figures."""
    import torch

    gib = psutil.virtual_memory().total / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} CPU cores, {gib:.0f} GiB of memory, no GPU; "
        f"Python {sys.version.split()[0]}, torch {torch.__version__}"
    )
