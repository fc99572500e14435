"""The whole dashboard in JupyterLab and in Notebook 7: its buttons, a busy cell, theme, reload."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser.lab import BUSY, PATHS, Lab, lab, notebook_of
from browser.test_quickstart import ADDRESS, charts_move, max_num_seqs, slider_obeyed

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

CELLS = (
    "# start\nimport llmserve\nsession = llmserve.serve(engine='simulator', decode_ms=5)\n"
    + ADDRESS.strip(),
    "dash = session.dashboard()\ndash",
    BUSY,
    "# keep\ndash.snapshot()",
    "# the end\nsession.close()",
)


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return notebook_of(CELLS, tmp_path / "dashboard.ipynb")


def ask(page: Lab, prompt: str) -> None:
    """And read the whole reply, not the one before it."""
    text = page.page.locator("[data-llmserve=reply-text]")
    before = text.all_inner_texts()
    page.page.locator("[data-llmserve=prompt]").fill(prompt)
    page.page.locator("[data-llmserve=send]").click()
    page.wait_until(lambda: text.all_inner_texts() not in ([], [""], before))
    page.page.locator("[data-llmserve=reply-figures]", has_text="100 tokens · length").wait_for()


def buttons_obeyed(page: Lab, folder: Path) -> None:
    """Each toolbar button, and the sliders show what it did."""
    before = max_num_seqs(folder)
    presses = (
        ("preset-latency", 8), ("undo", before), ("ab", 128), ("ab", 32),
        ("preset-throughput", 128), ("preset-balanced", 32), ("preset-latency", 8),
        ("defaults", 32),
    )  # fmt: skip
    for name, value in presses:
        page.page.locator(f".llmserve-{name}").first.click()
        page.wait_until(lambda value=value: max_num_seqs(folder) == value)  # type: ignore[misc]  # mypy knows no defaults of lambdas
        page.wait_until(lambda value=value: page.shown("max_num_seqs") == value)  # type: ignore[misc]  # the same


def ink(page: Lab) -> str:
    """Of a title in sight: what is scrolled away is not drawn anew."""
    page.page.locator("[data-llmserve=panel-ttft]").scroll_into_view_if_needed()
    title = page.page.locator("[data-llmserve=panel-ttft] .gtitle").first
    return str(title.evaluate("e => getComputedStyle(e).fill"))


def choose_theme(page: Lab, name: str) -> None:
    page.page.locator(".lm-MenuBar-item", has_text="Settings").first.click()
    page.page.locator(".lm-Menu-item", has_text="Theme").first.hover()
    page.page.locator(".lm-Menu-item", has_text=name).first.click()


@pytest.mark.parametrize("application", PATHS)
def test_buttons_sliders_and_playground_work_idle_and_busy_in_both_themes_and_after_a_reload(
    notebook: Path, application: str
) -> None:
    folder = notebook.parent
    with lab(notebook, application) as page:
        page.run_all_above("# a busy cell", first="# start")
        page.wait_until((folder / "address.json").exists, timeout=120)
        page.page.locator("[data-llmserve=dashboard][data-state=live]").wait_for(timeout=60_000)
        ask(page, "a story about a lighthouse")
        charts_move(page)
        slider_obeyed(page, folder, pixels=60)
        buttons_obeyed(page, folder)
        page.screenshot(f"dashboard-{application}", page.dashboard)

        with page.busy(folder):
            slider_obeyed(page, folder, pixels=-30)
            ask(page, "a story about a whale")

        choose_theme(page, "JupyterLab Dark")
        page.wait_until(lambda: ink(page) == "rgb(255, 255, 255)")
        page.screenshot(f"dashboard-dark-{application}", page.dashboard)

        points = page.data("points")
        before = notebook.stat().st_mtime_ns
        page.page.keyboard.press("Control+s")
        page.wait_until(lambda: notebook.stat().st_mtime_ns > before)
        page.page.reload()
        page.page.locator("[data-llmserve=dashboard][data-state=live]").wait_for(timeout=60_000)
        page.wait_until(lambda: page.data("points") > points)

        page.run_cell("# keep")
        page.cell("# keep").locator("img").wait_for(timeout=30_000)
        page.run_cell("# the end")
        page.page.locator("[data-llmserve=dashboard][data-state=ended]").wait_for()
