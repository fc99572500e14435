"""lm-evaluation-harness on local tasks: its log-likelihoods are those that transformers has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from clients.endpoint import CONTEXT, KEY, PATIENCE_S, ROOT, SERVER_PYTHON, Endpoint

MODEL = str(ROOT / "src" / "llmserve" / "models" / "tiny")
TASKS = Path(__file__).parent / "lm_eval_tasks"
TEXTS = [
    "Once upon a time, a fox lived near a lighthouse.",
    "The keeper's café — naïve, 漢字 and 🙂 — was closed.\nNobody came.",
    " ".join(f"The fox counted {n} ships." for n in range(110)),  # read in several chunks
]
LOCAL = {"tokenizer": MODEL, "tokenizer_backend": "huggingface"}
WAYS: dict[str, dict[str, Any]] = {
    "as tokens": {**LOCAL, "tokenized_requests": True},
    "as tokens, four at once": {**LOCAL, "tokenized_requests": True, "batch_size": 4},
    "as text": {**LOCAL, "tokenized_requests": False},
    "as text, four clients": {**LOCAL, "tokenized_requests": False, "num_concurrent": 4},
    "by the server's tokenizer": {"auth_token": KEY},
}


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskManager:
    """Of files alone: the tasks, their questions, and the folder of datasets made of them."""
    folder = tmp_path / "tasks"
    shutil.copytree(TASKS, folder)
    (folder / "perplexity.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return TaskManager(include_path=str(folder), include_defaults=False)


def _evaluated(
    endpoint: Endpoint, tasks: TaskManager, names: list[str], way: dict[str, Any]
) -> dict[str, Any]:
    way = {"max_length": CONTEXT, "max_retries": 1, **way}
    batch_size = way.pop("batch_size", 1)
    at = {"model": endpoint.model, "base_url": f"{endpoint.url}/completions"}
    done: dict[str, Any] = lm_eval.simple_evaluate(
        model="local-completions", model_args=at | way, tasks=names, task_manager=tasks,
        batch_size=batch_size, bootstrap_iters=0,
    )  # fmt: skip
    samples: dict[str, Any] = done["samples"]
    return samples


@cache
def _reference(pairs: tuple[tuple[str, str], ...]) -> list[tuple[float, bool]]:
    done = subprocess.run(
        [SERVER_PYTHON, str(Path(__file__).parent / "transformers_reference.py"), MODEL],
        input=json.dumps(pairs), stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENCE_S,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    return [(value, greedy) for value, greedy in json.loads(done.stdout)]


@pytest.mark.parametrize("way", [*WAYS])
def test_log_likelihoods_are_those_of_transformers(
    torch: Endpoint, tasks: TaskManager, way: str, note: Callable[[str], None]
) -> None:
    samples = _evaluated(torch, tasks, ["llmserve_choice", "llmserve_perplexity"], WAYS[way])
    pairs: list[tuple[str, str]] = []
    got: list[tuple[float, bool | None]] = []
    for sample in samples["llmserve_choice"]:
        pairs += [(context, following) for context, following in sample["arguments"]]
        got += [(float(value), bool(greedy)) for [(value, greedy)] in sample["resps"]]
    for sample in samples["llmserve_perplexity"]:
        pairs += [("", text) for (text,) in sample["arguments"]]
        got += [(float(value), None) for [value] in sample["resps"]]
    assert len(got) == 8 + len(TEXTS)
    worst = 0.0
    for (value, greedy), (expected, likeliest) in zip(got, _reference(tuple(pairs)), strict=True):
        assert value == pytest.approx(expected, abs=1e-3, rel=1e-6)
        assert greedy in (None, likeliest)
        worst = max(worst, abs(value - expected))
    note(f"lm_eval {way}: {len(got)} log-likelihoods, off by {worst:.1e} at most")


def test_an_evaluation_that_generates(endpoint: Endpoint, tasks: TaskManager) -> None:
    way = WAYS["as text" if endpoint.engine == "simulator" else "as tokens"]
    samples = _evaluated(endpoint, tasks, ["llmserve_until"], way)
    said = [sample["resps"][0][0] for sample in samples["llmserve_until"]]
    assert len(said) == 3
    assert all(isinstance(text, str) and "\n" not in text for text in said)
    assert any(said)
