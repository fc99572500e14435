"""The `llm` command with a model of its extra-openai-models.yaml, and no plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clients.endpoint import KEY, PATIENCE_S, Endpoint

COMMAND = str(Path(sys.executable).parent / "llm")
ADD = '''
def add(a: int, b: int) -> int:
    """The sum of both."""
    return a + b
'''


KINDS = ["chat", "responses", "completion"]


@pytest.fixture
def folder(torch: Endpoint, simulator: Endpoint, tmp_path: Path) -> Path:
    """The command's own: a model of each kind on each engine, and a key by its name."""
    models = [
        {
            "model_id": f"{endpoint.engine}-{kind}",
            "model_name": endpoint.model,
            "api_base": endpoint.url,
            "api_key_name": "here",
            "supports_tools": kind != "completion",
            "supports_schema": kind != "completion",
            **({} if kind == "chat" else {kind: True}),
        }
        for endpoint in (torch, simulator)
        for kind in KINDS
    ]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
    (tmp_path / "keys.json").write_text(json.dumps({"here": KEY}))
    return tmp_path


def _run(folder: Path, *words: str, said: str = "") -> str:
    done = subprocess.run(
        [COMMAND, *words], env={**os.environ, "LLM_USER_PATH": str(folder)}, input=said,
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt(folder: Path, kind: str) -> None:
    words = ("-m", f"torch-{kind}", "-o", "max_tokens", "16")
    assert _run(folder, *words, "Tell me a story.").strip()


@pytest.mark.parametrize("model", ["torch-chat", "torch-responses", "simulator-chat"])
def test_a_tool_of_its_own_and_one_from_python(folder: Path, model: str) -> None:
    """The choice is the model's: words, or a call whose result goes back to it."""
    words = ("-m", model, "-T", "llm_version", "--functions", ADD, "-o", "max_tokens", "64")
    assert _run(folder, *words, "What is 7 + 5?").strip()


def test_a_schema(folder: Path) -> None:
    words = ("-m", "torch-chat", "--schema", "height int, kind bool", "Which place?")
    assert json.loads(_run(folder, *words)).keys() == {"height", "kind"}


def test_a_chat_goes_on(folder: Path) -> None:
    words = ("chat", "-m", "torch-chat", "-o", "max_tokens", "8")
    said = _run(folder, *words, said="Tell me a story.\nAnd then?\nquit\n")
    assert said.count("\n> ") == 3, "it asks again after each reply"


def test_a_chat_with_a_tool(folder: Path) -> None:
    words = ("chat", "-m", "torch-chat", "-T", "llm_version", "-o", "max_tokens", "32")
    assert _run(folder, *words, said="Which version?\nquit\n").count("\n> ") == 2
