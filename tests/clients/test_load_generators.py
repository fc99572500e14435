"""GuideLLM, AIPerf and Locust, as people run them: every request that they send is answered."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from clients.endpoint import KEY, ROOT, Endpoint

FOLDER = ROOT / ".venv-clients-load" / "bin"
MODEL = ROOT / "src" / "llmserve" / "models" / "tiny"
REQUESTS, INPUT, OUTPUT = 12, 24, 16
PATIENCE_S = 500

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def _run(endpoint: Endpoint, folder: Path, *words: str, **more: str) -> None:
    done = subprocess.run(
        [str(FOLDER / words[0]), *words[1:]], cwd=folder, capture_output=True, text=True,
        timeout=PATIENCE_S, env={**endpoint.environment, **more},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_guidellm(endpoint: Endpoint, tmp_path: Path, route: str) -> None:
    backend = f"kind=openai_http,target={endpoint.root},api_key={KEY},request_format={route}"
    words = ["run", "--backend", backend, "--profile", "kind=concurrent,streams=4"]
    words += ["--constraint", f"kind=max_requests,count={REQUESTS}", "--disable-progress"]
    words += ["--data", f"kind=synthetic_text,prompt_tokens={INPUT},output_tokens={OUTPUT}"]
    words += ["--tokenizer", f"kind=huggingface_auto,model={MODEL}"]
    words += ["--output", "kind=json,path=found.json"]
    _run(endpoint, tmp_path, "guidellm", *words)
    (found,) = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    totals = found["metrics"]["request_totals"]
    assert totals["successful"] == REQUESTS
    assert totals["errored"] == totals["incomplete"] == 0


@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_aiperf(endpoint: Endpoint, tmp_path: Path, kind: str) -> None:
    """Offline it reads a tokenizer from the hub's cache alone, so there is one with the model."""
    kept = tmp_path / "hub" / "hub" / "models--llmserve--tiny"
    shutil.copytree(MODEL, kept / "snapshots" / "0")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0")
    words = ["profile", "-m", endpoint.model, "--tokenizer", "llmserve/tiny", "--streaming"]
    words += ["--endpoint-type", kind, "--url", endpoint.root, "--api-key", KEY, "--ui", "none"]
    words += ["--request-count", str(REQUESTS), "--concurrency", "4", "--artifact-dir", "found"]
    words += ["--synthetic-input-tokens-mean", str(INPUT), "--output-tokens-mean", str(OUTPUT)]
    words += ["--extra-inputs", "ignore_eos:true"]
    _run(endpoint, tmp_path, "aiperf", *words, HF_HOME=str(tmp_path / "hub"))
    found: dict[str, Any] = json.loads(
        (tmp_path / "found" / "profile_export_aiperf.json").read_text()
    )
    assert found["request_count"]["avg"] == REQUESTS
    assert not found.get("error_summary")


def test_locust(endpoint: Endpoint, tmp_path: Path) -> None:
    words = ["--headless", "--users", "6", "--spawn-rate", "6", "--run-time", "20s"]
    words += ["--host", endpoint.root, "--csv", "found", "--only-summary"]
    words += ["--locustfile", str(Path(__file__).parent / "locustfile.py")]
    _run(endpoint, tmp_path, "locust", *words)
    with (tmp_path / "found_stats.csv").open() as read:
        rows = {row["Name"]: row for row in csv.DictReader(read)}
    assert int(rows["Aggregated"]["Request Count"]) > 0
    assert int(rows["Aggregated"]["Failure Count"]) == 0
    assert {"/v1/chat/completions", "/metrics"} <= rows.keys()


def test_the_environment_of_these_clients_is_there() -> None:
    """Else each would fail with a file that is not found: `make clients` makes it."""
    assert os.access(FOLDER / "guidellm", os.X_OK), f"make clients makes {FOLDER.parent.name}"
