"""Who asks over HTTP in a measurement: `http_load.py` in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Side:
    url: str
    key: str
    model: str
    pid: int
    """Of the process that answers over HTTP."""


class Client:
    """The process of `http_load.py`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("http_load.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def drive(
        self, side: Side, prompts: list[list[int]], concurrency: int, max_tokens: int
    ) -> dict[str, Any]:
        """What `http_load.py` answers, and `cpu_us`: of the answering process for each token."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        told = {
            **vars(side), "prompts": prompts, "concurrency": concurrency, "max_tokens": max_tokens,
        }  # fmt: skip
        server = psutil.Process(side.pid)
        before = sum(server.cpu_times()[:2])
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the client ended; its words are above")
        found: dict[str, Any] = json.loads(line)
        found["cpu_us"] = (sum(server.cpu_times()[:2]) - before) / found["tokens"] * 1e6
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
