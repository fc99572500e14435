"""The servers of `front.py`, each a process of its own, and the process that asks them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from benchmarks.servers import KEY, free_port, running
from llmserve.models import bundled_path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
MOST_TOKENS = 60_000
"""A stream shall outlast its measurement."""


class Process:
    """A process of ours that answers each line with a line of JSON."""

    def __init__(self, module: str, *words: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = self._process.pid

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a process of the benchmark ended; its words are above")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Cpu(NamedTuple):
    """Seconds of a process so far: by kind to a hundredth, and of its threads together exactly."""

    user: float
    system: float
    whole: float


@dataclass(frozen=True)
class FrontSide:
    name: str
    url: str
    key: str
    model: str
    pid: int
    """Of the process that answers over HTTP."""
    process: Process | None = None
    has_cells: bool = False
    """Its main thread is a notebook's."""
    spaces: bool = False
    """Frames may hold several tokens: they are counted by the spaces of the text."""
    most_tokens: int = MOST_TOKENS
    body: Mapping[str, object] = field(default_factory=dict)

    def asked(self, **more: object) -> dict[str, object]:
        address = urlsplit(self.url)
        return {
            "host": address.hostname, "port": address.port, "path": f"{address.path}/completions",
            "key": self.key, "model": self.model, "prompt": [72, 101, 108, 108, 111],
            "max_tokens": self.most_tokens, "spaces": self.spaces, "body": self.body, **more,
        }  # fmt: skip

    def cpu(self) -> Cpu:
        """Of the answering process alone, and of a kernel without the thread of its cells."""
        user = system = whole = 0
        for thread in Path(f"/proc/{self.pid}/task").iterdir():
            if self.has_cells and thread.name == str(self.pid):
                continue
            with contextlib.suppress(OSError):  # it has ended
                told = (thread / "stat").read_text().rpartition(")")[2].split()
                whole += int((thread / "schedstat").read_text().split()[0])
                user, system = user + int(told[11]), system + int(told[12])
        return Cpu(user * TICK_S, system * TICK_S, whole / 1e9)


@contextlib.contextmanager
def ours(streams: int, step_ms: float, knobs: Mapping[str, object]) -> Iterator[FrontSide]:
    words = ("--step-ms", str(step_ms), "--streams", str(streams), "--set", json.dumps(knobs))
    with _told("front_kernel", "llmserve", True, *words) as side:
        yield side


@contextlib.contextmanager
def bare(step_ms: float, words: int) -> Iterator[FrontSide]:
    name = "bare loop" if words == 1 else f"bare loop, {words} words a frame"
    with _told(
        "front_bare", name, words > 1, "--step-ms", str(step_ms), "--words", str(words)
    ) as one:
        yield one


@contextlib.contextmanager
def _told(module: str, name: str, spaces: bool, *words: str) -> Iterator[FrontSide]:
    process = Process(module, *words)
    try:
        told = process.hear()
        yield FrontSide(
            name, told["url"], told["key"], told["model"], process.pid, process,
            has_cells=module == "front_kernel", spaces=spaces,
        )  # fmt: skip
    finally:
        process.close()


@contextlib.contextmanager
def vllm(python: Path, streams: int, interval: int) -> Iterator[FrontSide]:
    """`vllm serve` with the bundled model; its engine core is a process that is not counted."""
    port = free_port()
    command = [
        str(python.with_name("vllm")), "serve", str(bundled_path()), "--served-model-name", "m",
        "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY, "--max-model-len", "512",
        "--max-num-seqs", str(streams), "--enforce-eager", "--disable-uvicorn-access-log",
        "--stream-interval", str(interval),
    ]  # fmt: skip
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": ""}
    with running(command, f"http://127.0.0.1:{port}/health", env) as process:
        yield FrontSide(
            "vllm serve", f"http://127.0.0.1:{port}/v1", KEY, "m", process.pid, most_tokens=480
        )
