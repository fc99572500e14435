"""What can be known of Binder without building there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

BINDER = Path(__file__).parents[2] / "binder"


def test_python_is_one_that_the_kernel_and_the_package_take() -> None:
    pinned = re.search(r"python=3\.(\d+)", (BINDER / "environment.yml").read_text())
    assert pinned is not None
    assert int(pinned[1]) == 12


def test_the_build_script_runs_and_takes_the_cpu_build_of_torch_only() -> None:
    script = BINDER / "postBuild"
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", str(script)], check=True)
    assert "--constraint binder/constraints-cpu.txt" in script.read_text()
    pins = (BINDER / "constraints-cpu.txt").read_text()
    assert re.search(r"^torch==[\d.]+\+cpu$", pins, re.MULTILINE)
