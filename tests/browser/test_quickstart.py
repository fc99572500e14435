"""The quickstart in JupyterLab, in a real browser: charts move, and sliders obey."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import nbformat
import pytest

from browser.lab import BUSY, Lab, lab
from support.notebooks import FOLDER

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

ADDRESS = """
import json, pathlib
pathlib.Path("address.json").write_text(json.dumps([session.url, session.api_key]))
"""
TRAFFIC = """
import threading


over = threading.Event()


def client(i):
    while not over.is_set():
        session.generate(f"A story about {THINGS[i % 6]}!", max_tokens=60, seed=i)


clients = [threading.Thread(target=client, args=(i,)) for i in range(24)]
for each in clients:
    each.start()
"""
STOP = """
over.set()  # the end
[each.join() for each in clients]
%llmserve stop
"""


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """The quickstart without its last cell, which stops the server, and with traffic after it."""
    copy = nbformat.read(FOLDER / "01_quickstart.ipynb", as_version=4)
    cells = [cell for cell in copy.cells if cell.source != "%llmserve stop"]
    for cell in cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    copy.cells = [*cells, *(nbformat.v4.new_code_cell(c.strip()) for c in (ADDRESS, TRAFFIC))]
    copy.cells += [nbformat.v4.new_code_cell(c.strip()) for c in (BUSY, STOP)]
    path = tmp_path / "quickstart.ipynb"
    nbformat.write(copy, path)
    return path


def max_num_seqs(folder: Path) -> int:
    """What the engine obeys, by its own HTTP address."""
    url, key = json.loads((folder / "address.json").read_text())
    request = urllib.request.Request(
        url.removesuffix("/v1") + "/llmserve/knobs", headers={"Authorization": f"Bearer {key}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return int(json.load(answer)["knobs"]["max_num_seqs"]["value"])


def charts_move(page: Lab) -> None:
    before = page.data("points")
    page.wait_until(lambda: page.data("points") > before)


def slider_obeyed(page: Lab, folder: Path, pixels: int) -> None:
    """A move of the slider reaches the engine, and comes back as a mark on the charts."""
    marks, before = page.data("marks"), max_num_seqs(folder)
    shown = page.drag("max_num_seqs", pixels)
    assert shown != before
    page.wait_until(lambda: max_num_seqs(folder) == shown)
    page.wait_until(lambda: page.data("marks") > marks)


def test_the_quickstart_runs_and_its_sliders_retune_the_engine_while_requests_flow(
    notebook: Path,
) -> None:
    folder = notebook.parent
    with lab(notebook) as page:
        page.run_all_above("import threading", first="%load_ext llmserve")
        page.wait_until((folder / "address.json").exists, timeout=240)
        assert page.page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
        page.wait_until(lambda: page.data("marks") >= 2)  # the quickstart's own two changes

        page.cell('"Sequences in each step"').locator(".jp-RenderedPlotly").wait_for()

        page.run_cell("import threading")
        charts_move(page)
        slider_obeyed(page, folder, pixels=60)
        shown = page.data("points")
        page.wait_until(lambda: page.data("points") > shown + 20)  # what the picture is to show
        page.screenshot("dashboard", page.dashboard)

        with page.busy(folder):
            charts_move(page)
            slider_obeyed(page, folder, pixels=-40)
            page.screenshot("busy")

        page.run_cell("# the end")
        page.cell("# the end").get_by_text("Freed").wait_for(timeout=90_000)
        page.page.locator("[data-llmserve=dashboard][data-state=ended]").wait_for()
