"""A real server in a process of its own, and what a client is told: address, key and model."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
SERVER_PYTHON = os.environ.get("LLMSERVE_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
"""The interpreter that has llmserve: the one that runs these tests has the clients alone."""
KEY = "sk-clients-4f1c"
PATIENCE_S = 240.0
"""How long a test waits for what must come; nothing is asserted of how soon it comes."""
CONTEXT = 2048
ENDS: dict[str, object] = {"stop": [" "]}
"""Of a body: the reply ends by itself, after a word. Some helpers of clients' take a reply that was
cut off for none, and the simulator's go on to the end."""
ENGINES: dict[str, tuple[str, ...]] = {
    "torch": ("dtype=float32",),
    "simulator": ("prefill_ms=2.0", "decode_ms=2.0", f"max_model_len={CONTEXT}"),
}


@dataclass(frozen=True)
class Endpoint:
    engine: str
    root: str
    model: str

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    @property
    def environment(self) -> dict[str, str]:
        """For a client that is a command and reads where to go from its environment."""
        return {**os.environ, "OPENAI_BASE_URL": self.url, "OPENAI_API_KEY": KEY}


class Child:
    """A process, what it prints until it is up, and all of it where it fails."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self._silent = False
        self._more = threading.Condition()
        self._process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        )  # fmt: skip
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()

    def _read(self, stdout: IO[str]) -> None:
        for line in stdout:
            with self._more:
                self.lines.append(line.rstrip("\n"))
                self._more.notify_all()
        with self._more:
            self._silent = True
            self._more.notify_all()

    def line_with(self, word: str) -> str:
        """The first line that holds `word`, once it has come."""

        def found() -> str | None:
            return next((line for line in self.lines if word in line), None)

        with self._more:
            self._more.wait_for(lambda: found() is not None or self._silent, PATIENCE_S)
        line = found()
        assert line is not None, f"no {word!r} came:\n{self.printed}"
        return line

    @property
    def printed(self) -> str:
        return "\n".join(self.lines)

    def stop(self) -> int:
        self._process.terminate()
        try:
            status = self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._reader.join(10)
        return status


@contextmanager
def child(command: list[str], **environment: str) -> Iterator[Child]:
    made = Child(command, environment)
    try:
        yield made
    finally:
        made.stop()


@contextmanager
def serving(engine: str, options: tuple[str, ...] = ()) -> Iterator[Endpoint]:
    """Nothing that a client sends may leave a traceback in the server's own output."""
    words = [SERVER_PYTHON, "-u", "-m", "llmserve.entrypoints.cli.main", "serve"]
    words += ["--engine", engine, "--port", "0"]
    for option in options or ENGINES[engine]:
        words += ["--option", option]
    with child(words, LLMSERVE_API_KEY=KEY, PYTHONPATH=str(ROOT / "src")) as server:
        url = server.line_with("url  ").removeprefix("url  ")
        model = server.line_with(f" on {engine}").split()[0]
        yield Endpoint(engine, url.removesuffix("/v1"), model)
    assert "Traceback" not in server.printed, server.printed
