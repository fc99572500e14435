"""The repository's notebooks: what is stored in them, and that any cell may be run at any time."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from support.kernels import Kernel, gone, kernel
from support.notebooks import FOLDER

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
named = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
SECRETS = re.compile(r"sk-llmserve-|/root/|/home/|/Users/|/tmp/")


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list[str]:
    return [cell.source for cell in read(path).cells if cell.cell_type == "code"]


@named
def test_what_is_stored_is_light_and_has_no_widget_state(path: Path) -> None:
    assert path.stat().st_size < 200_000
    assert "widgets" not in read(path).metadata
    assert "widget-view" not in path.read_text()


@named
def test_what_is_stored_shows_a_picture_without_a_kernel(path: Path) -> None:
    pictures = [
        output.data[kind]
        for cell in read(path).cells
        for output in cell.get("outputs", [])
        for kind in {"image/png", "image/svg+xml"} & output.get("data", {}).keys()
    ]
    assert pictures
    png = base64.b64encode(b"\x89PNG").decode()[:5]
    assert all(picture.startswith((png, "<svg")) for picture in pictures)


@named
def test_what_is_stored_tells_no_key_and_no_machine(path: Path) -> None:
    assert not SECRETS.search(path.read_text())


@named
def test_every_cell_was_run_and_none_failed(path: Path) -> None:
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "error" not in kinds


@pytest.mark.long  # it is run by nbval, and in the browser
@pytest.mark.kernel
@pytest.mark.timeout(400)
def test_every_cell_of_the_quickstart_may_be_run_twice() -> None:
    with kernel() as one:
        for cell in code(FOLDER / "01_quickstart.ipynb"):
            one.ok(cell, timeout=120)
            again = one.ok(cell, timeout=120)
            if cell == "%llmserve start":
                assert "running already" in again.text
            if cell == "%llmserve stop":
                assert "Nothing is running" in again.text
        assert only_the_kernel(one)


@pytest.mark.long  # it is run by nbval, and in the browser
@pytest.mark.kernel
@pytest.mark.timeout(400)
def test_the_quickstart_survives_being_run_backwards() -> None:
    cells = code(FOLDER / "01_quickstart.ipynb")
    with kernel() as one:
        one.ok(cells[0])
        for cell in reversed(cells):  # before the start: a red line or a missing name, no more
            ran = one.run(cell, timeout=120)
            if ran.status != "ok" and "NameError" not in ran.error:
                assert ran.error.count("\n") == 0, ran.error
        one.ok("%llmserve stop")
        for cell in cells:
            one.ok(cell, timeout=120)
        assert only_the_kernel(one)


def only_the_kernel(one: Kernel) -> bool:
    """Whether everything that the session started is gone."""
    return not gone(one.family() - {one.pid})
