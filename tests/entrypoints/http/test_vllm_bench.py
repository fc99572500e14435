"""`vllm bench serve`, as vLLM ships it, on our own routes: the client that people compare with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmserve.models import bundled_path
from support.serving import KEY, Serving

PROMPTS, INPUT, OUTPUT = 8, 24, 16
ROUTES = {
    "openai": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
}
PATIENCE_S = 400
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(500)]


@pytest.mark.parametrize(
    ("engine", "backend"),
    [("torch", "openai"), ("torch", "openai-chat"), ("simulator", "openai-chat")],
)
def test_every_request_of_it_is_done_with_all_its_tokens(
    started: Callable[[str], Serving], engine: str, backend: str, tmp_path: Path
) -> None:
    server = started(engine)
    command = [str(Path(sys.executable).parent / "vllm"), "bench", "serve"]
    command += ["--backend", backend, "--base-url", server.root, "--endpoint", ROUTES[backend]]
    command += ["--model", server.model, "--tokenizer", str(bundled_path()), "--ignore-eos"]
    command += ["--dataset-name", "random", "--num-prompts", str(PROMPTS), "--disable-tqdm"]
    command += ["--random-input-len", str(INPUT), "--random-output-len", str(OUTPUT)]
    command += ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "found.json"]
    alone = {"OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S,
        env={**os.environ, **alone},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    assert (found["completed"], found["failed"]) == (PROMPTS, 0)
    assert found["total_output_tokens"] == PROMPTS * OUTPUT
    assert found["mean_ttft_ms"] > 0
