"""Packages that bring an engine, as installed ones are: their metadata in a folder on the path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def install(folder: Path, package: str, **engines: str) -> None:
    """engines: a name to what its entry point says, as `support.toy_engine:ENTRY`."""
    info = folder / f"{package.replace('-', '_')}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
    lines = [f"{name} = {value}\n" for name, value in engines.items()]
    (info / "entry_points.txt").write_text("[llmserve.engines]\n" + "".join(lines))


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A Python that finds what is installed in `folder`, llmserve and the tests' support."""
    path = os.pathsep.join([str(folder), str(ROOT / "src"), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, timeout=100,
        env={**os.environ, "PYTHONPATH": path}, cwd=folder,
    )  # fmt: skip


def llmserve(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return python(folder, "-m", "llmserve.entrypoints.cli.main", *words)
