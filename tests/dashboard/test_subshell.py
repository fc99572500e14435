"""Sliders and the playground work while a cell runs: real kernels, real subshell messages.

Which of ipykernel's versions are tried: the oldest that is allowed, and the one that is installed
(a fresh install has the newest).
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from support.kernels import Kernel, kernel

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]
INSTALLED = importlib.metadata.version("ipykernel")
OLDEST = "7.3"

START = """
import ipykernel, json, llmserve
session = llmserve.serve(engine="simulator")
view = session.dashboard()
slider = view.controls.by_name["max_num_seqs"].main
slider.description = "moved by this cell"  # the cell's own shell has now spoken on its comm
view.charts.send({"kind": "nothing"})
print(json.dumps({
    "version": ipykernel.__version__, "root": session.url.removesuffix("/v1"),
    "key": session.api_key, "slider": slider.model_id, "charts": view.charts.model_id,
}))
"""
BUSY = """
import pathlib
print("busy", flush=True)
while not pathlib.Path({flag!r}).exists():
    sum(range(1000))
"""


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the oldest ipykernel, to stand before the installed one on the path."""
    folder = tmp_path_factory.mktemp("ipykernel")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    wanted = f"ipykernel=={OLDEST}.*"
    done = subprocess.run([*command, str(folder), wanted], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def ask(told: dict[str, str], path: str) -> str:
    request = urllib.request.Request(
        told["root"] + path, headers={"Authorization": f"Bearer {told['key']}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def comes(done: Callable[[], bool]) -> bool:
    """Whether it is so within a time in which it surely would be."""
    until = time.monotonic() + 60
    while not done():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def moved(told: dict[str, str]) -> bool:
    knobs = json.loads(ask(told, "/llmserve/knobs"))["knobs"]
    return bool(knobs["max_num_seqs"]["value"] == 8)


def answered(told: dict[str, str]) -> bool:
    lines = ask(told, "/metrics").splitlines()
    return any(
        line.startswith("llmserve_request_success_total") and float(line.split()[-1]) > 0
        for line in lines
    )


def start(there: Kernel) -> dict[str, str]:
    told: dict[str, str] = json.loads(there.ok(START).stdout.strip().splitlines()[-1])
    return told


def works_while_a_cell_runs(there: Kernel, told: dict[str, str], flag: Path) -> None:
    subshell = there.subshell()
    cell = there.start(BUSY.format(flag=str(flag)))
    there.wait_for_output(cell, "busy")
    try:
        state = {"method": "update", "state": {"value": 8}, "buffer_paths": []}
        there.tell_widget(told["slider"], state, subshell)
        assert comes(lambda: moved(told)), "the slider waits for the cell to end"
        wish = {"kind": "play", "act": "send", "text": "hello", "copies": 2, "max_tokens": 5}
        there.tell_widget(told["charts"], {"method": "custom", "content": wish}, subshell)
        assert comes(lambda: answered(told)), "the playground waits for the cell to end"
        assert not flag.exists()  # the cell runs on
    finally:
        flag.touch()
        there.finish(cell)
    there.run("session.close()")


def test_with_the_oldest_ipykernel(oldest: Path, tmp_path: Path) -> None:
    with kernel(oldest) as there:
        told = start(there)
        assert told["version"].startswith(OLDEST)
        works_while_a_cell_runs(there, told, tmp_path / "go")


def test_with_the_installed_ipykernel(tmp_path: Path) -> None:
    with kernel() as there:
        told = start(there)
        assert told["version"] == INSTALLED
        works_while_a_cell_runs(there, told, tmp_path / "go")
