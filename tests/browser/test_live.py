"""A bench and a sweep under way, as JupyterLab draws them."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser.lab import Lab, lab, notebook_of

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

CELLS = (
    "# start\nimport llmserve\n%load_ext llmserve\n"
    "session = llmserve.serve(engine='simulator', decode_ms=5)",
    "# here",
    "%llmserve bench --rate 12 --duration 4 --repeats 1",
    "# sweep\nsession.sweep(max_num_seqs=[2, 32], rate=20, duration=2, rounds=1)",
    "# the end\nsession.close()",
)


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return notebook_of(CELLS, tmp_path / "live.ipynb")


WATCH = """cell => {
  cell.pictures = new Set();
  const note = () => {
    for (const each of cell.querySelectorAll(".jp-RenderedSVG svg, .jp-RenderedSVG img"))
      cell.pictures.add(each.outerHTML);
  };
  new MutationObserver(note).observe(cell, { childList: true, subtree: true });
}"""


def pictures(page: Lab, cell: str, at_least: int) -> int:
    """How many different ones the cell has shown when it has run."""
    page.cell(cell).evaluate(WATCH)
    page.run_cell(cell)
    page.wait_until(lambda: page.ended(cell))
    count = "cell => cell.pictures.size"  # what was told last may yet have to be drawn
    page.wait_until(lambda: page.cell(cell).evaluate(count) >= at_least)
    assert page.cell(cell).locator("[data-mime-type$=stderr]").count() == 0
    return int(page.cell(cell).evaluate(count))


def test_a_bench_and_a_sweep_are_drawn_anew_while_they_run(notebook: Path) -> None:
    with lab(notebook) as page:
        page.run_all_above("# here", first="# start")
        page.wait_until(lambda: page.ended("# start"))
        pictures(page, "%llmserve bench", at_least=3)  # one a second where the machine keeps up
        page.screenshot("live-bench")
        assert pictures(page, "# sweep", at_least=3) == 3  # empty, and one a run
        page.screenshot("live-sweep")
        page.run_cell("# the end")
        page.wait_until(lambda: page.ended("# the end"))
