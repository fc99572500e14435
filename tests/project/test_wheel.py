"""What a user installs: built here as pip builds it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True, timeout=100,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        return set(opened.namelist())


def test_the_wheel_holds_the_model_the_bundles_and_every_room(names: set[str]) -> None:
    assert {
        "llmserve/models/tiny/model.safetensors",
        "llmserve/dashboard/static/dashboard.js",
        "llmserve/py.typed",
    } <= names
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert {name for name in modules if "/models/training/" not in name} <= names


def test_how_the_model_was_trained_is_not_in_the_wheel(names: set[str]) -> None:
    assert not [name for name in names if "training" in name]
