"""How long vLLM takes to be ready, in the kernel and by `vllm serve`: for `cold_start.py`.

Ready is a one-token completion that was answered; the same model and options on both sides.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import IO

from benchmarks.servers import KEY, end, free_port, llmserve
from llmserve.models import bundled_path

OURS, THEIRS = "vLLM in the kernel", "vllm serve"
NAME = "bench"
SEQS, BATCHED, LENGTH = 64, 2048, 512
POLL_S, LONGEST_S = 0.05, 300.0


def command(side: str, python: str, port: int) -> list[str]:
    model = str(bundled_path())
    if side == THEIRS:
        return [
            str(Path(python).with_name("vllm")), "serve", model, "--served-model-name", NAME,
            "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY, "--dtype", "float32",
            "--max-model-len", str(LENGTH), "--enforce-eager", "--max-num-seqs", str(SEQS),
            "--max-num-batched-tokens", str(BATCHED),
        ]  # fmt: skip
    options = {
        "served_model_name": NAME, "dtype": "float32", "max_model_len": LENGTH,
        "enforce_eager": True, "max_num_seqs_ceiling": SEQS,
        "max_num_batched_tokens_ceiling": BATCHED,
    }  # fmt: skip
    words = [word for one in options.items() for word in ("--option", "{}={}".format(*one))]
    return llmserve(python, model, port, "vllm", *words)


def ready_s(side: str, python: str) -> float:
    """Seconds from the process's start to its first token."""
    port, source = free_port(), Path(__file__).parents[2] / "src"
    environment = {
        **os.environ, "PYTHONPATH": str(source), "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    with tempfile.TemporaryFile() as log:
        begun = time.perf_counter()
        process = subprocess.Popen(
            command(side, python, port), env=environment, stdout=log, stderr=log
        )
        try:
            while not answers(port):
                if process.poll() is not None or time.perf_counter() - begun > LONGEST_S:
                    raise SystemExit(f"{side} did not start:\n{last_words(log)}")
                time.sleep(POLL_S)
            return time.perf_counter() - begun
        finally:
            end(process)


def answers(port: int) -> bool:
    body = json.dumps({"model": NAME, "prompt": "hi", "max_tokens": 1}).encode()
    head = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body, head)
    try:
        with urllib.request.urlopen(asked, timeout=60):
            return True
    except urllib.error.HTTPError as error:
        raise SystemExit(f"a completion was refused: {error.read()[:500]!r}") from None
    except OSError:
        return False


def last_words(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read()[-3000:].decode(errors="replace")


def block(python: str, number: int) -> dict[str, float]:
    sides = (OURS, THEIRS) if number % 2 else (THEIRS, OURS)
    return {side: ready_s(side, python) for side in sides}


def measure(python: str, blocks: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    block(python, 0)
    for number in range(blocks):
        for side, took in block(python, number).items():
            found[side].append(took)
    return found
