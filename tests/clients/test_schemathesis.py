"""schemathesis over the server's own description: nothing that it makes up is a 5xx, or hangs.

`LLMSERVE_CASES` says how many requests are made up at least: 500, and 10,000 in `make clients`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clients.endpoint import KEY, Endpoint, serving

COMMAND = str(Path(sys.executable).parent / "schemathesis")
CASES = int(os.environ.get("LLMSERVE_CASES", "500"))
SEED = 16
HANGS_S = 60
CONTROL = "/llmserve/(knobs|sleep|wake|restart)"
"""What changes the server for all who come after: on a server of its own."""
ENGINES = {
    "torch": ("dtype=float32", "max_model_len=128"),
    "simulator": ("prefill_ms=0", "decode_ms=0", "max_model_len=128"),
}
EACH = CASES // 7 if CASES <= 500 else CASES // 50
"""Drawn for each route; where there are more, most cases are those of the coverage phase."""
MOST_S = 1200 if CASES <= 500 else 7200

pytestmark = pytest.mark.timeout(MOST_S)


def _run(endpoint: Endpoint, folder: Path, *words: str) -> dict[str, Any]:
    """Its report; it ends with another status than 0 at a 5xx and where no answer comes."""
    report = folder / "report.json"
    phases = "examples,fuzzing" if CASES <= 500 else "examples,coverage,fuzzing"
    command = [
        COMMAND,
        "run",
        f"{endpoint.root}/openapi.json",
        "-H",
        f"Authorization: Bearer {KEY}",
    ]
    command += ["--checks", "not_a_server_error", "--continue-on-failure", "--no-shrink"]
    command += ["--seed", str(SEED), "--request-timeout", str(HANGS_S), "--phases", phases]
    command += ["--suppress-health-check", "all", "--generation-database", "none", "--no-color"]
    command += ["--report", "json", "--report-json-path", str(report), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=MOST_S)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    assert found["complete"]
    assert found["errors"] == found["failures"] == []
    return found


@pytest.mark.parametrize("engine", [*ENGINES])
def test_nothing_made_up_is_a_server_error_or_hangs(
    engine: str, tmp_path: Path, note: Callable[[str], None]
) -> None:
    with serving(engine, ENGINES[engine]) as endpoint:
        words = ("--exclude-path-regex", CONTROL, "--max-examples", str(EACH))
        found = _run(endpoint, tmp_path, *words)
    made = found["test_cases"]["generated"]
    assert made >= CASES
    paths = found["operations"]["tested"]
    note(f"schemathesis on {engine}: {made} requests to {paths} operations, seed {SEED}: no 5xx")
    rates = found["valid_rates"]
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize"):
        phases = rates[f"POST {path}"].values()
        assert sum(phase["accepted"] for phase in phases) > 0, f"none got as far as {path}"


def test_nothing_made_up_breaks_the_control_of_a_server(
    tmp_path: Path, note: Callable[[str], None]
) -> None:
    with serving("simulator", ENGINES["simulator"]) as endpoint:
        words = ("--include-path-regex", CONTROL, "--max-examples", str(EACH))
        found = _run(endpoint, tmp_path, *words)
    made = found["test_cases"]["generated"]
    note(f"schemathesis on control of the simulator: {made} requests, seed {SEED}: no 5xx")
    assert found["operations"]["tested"] >= 4
