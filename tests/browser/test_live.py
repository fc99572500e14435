"""A bench and a sweep under way, as JupyterLab draws them."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser.lab import Lab, lab, notebook_of

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

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


def pictures(page: Lab, cell: str) -> int:
    """How many different ones the cell shows until it has run."""
    page.run_cell(cell)
    seen = set()

    def ended() -> bool:
        shown = page.cell(cell).locator(".jp-RenderedSVG")
        if shown.count():
            seen.add(shown.first.inner_html())
        return page.prompt(cell).strip() not in ("[ ]:", "[*]:")

    page.wait_until(ended, 60)
    assert page.cell(cell).locator("[data-mime-type$=stderr]").count() == 0
    return len(seen)


def test_a_bench_and_a_sweep_are_drawn_anew_while_they_run(notebook: Path) -> None:
    with lab(notebook) as page:
        page.run_all_above("# here", first="# start")
        page.wait_until(lambda: page.prompt("# start").strip() not in ("[ ]:", "[*]:"), 60)
        assert pictures(page, "%llmserve bench") > 3
        page.screenshot("live-bench")
        assert pictures(page, "# sweep") == 3  # empty, and one a run
        page.screenshot("live-sweep")
        page.run_cell("# the end")
        page.wait_until(lambda: page.prompt("# the end").strip() not in ("[ ]:", "[*]:"), 60)
