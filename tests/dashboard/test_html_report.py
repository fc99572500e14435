"""What is kept of a dashboard: the file opened offline in a real browser, and the plotly Figure."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from dashboard.browser import PATIENCE_S
from dashboard.parts import Desk
from dashboard.story import burst
from llmserve.dashboard.html_report import to_html
from llmserve.dashboard.view import DashboardView


@pytest.fixture(scope="module")
def view() -> DashboardView:
    desk = Desk.lay()
    burst(desk)
    return DashboardView(desk.charts, desk.controls, desk.recorder, lambda _: None)


@pytest.mark.browser
def test_a_saved_report_shows_panels_tape_and_why_offline(
    browser: Browser, view: DashboardView, tmp_path: Path
) -> None:
    path = view.save(tmp_path / "report.html")
    asked: list[str] = []
    with browser.new_page(offline=True) as page:
        page.set_default_timeout(PATIENCE_S * 1e3)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.set_viewport_size({"width": 1280, "height": 1300})
        page.goto(path.as_uri())
        page.wait_for_selector("[data-llmserve=dashboard][data-state=ended]")
        page.wait_for_selector("[data-llmserve=tape-canvas][data-steps]")
        page.locator("[data-llmserve=panel-ttft] .js-line").first.wait_for(state="attached")
        assert "Saved" in page.locator("[data-llmserve=status]").inner_text()
        assert "max_num_seqs = 32 binds" in page.locator("[data-llmserve=why]").inner_text()
        page.locator("tr[data-request]").first.click()
        assert "decode" in page.locator("[data-llmserve=waterfall]").inner_text()
        assert errors == []
    assert [url for url in asked if not url.startswith(("file:", "blob:", "data:"))] == []


def test_saving_leaves_the_live_page_its_own_count(view: DashboardView, tmp_path: Path) -> None:
    before = view.charts._link.seq
    view.controls._pressed("undo", lambda _: None)
    view.save(tmp_path / "a.html")
    assert view.charts._link.seq == before
    assert view.controls.take_changed()  # still to be told to the live page


def test_nothing_in_a_report_can_end_its_script() -> None:
    page = to_html("t", [({"id": "</script><script>alert(1)"}, [b"x"])], b"export default 1")
    assert "alert(1)" in page
    assert "</script><script>alert" not in page


def test_the_figure_has_a_line_per_line_of_the_panels_and_a_mark_per_change(
    view: DashboardView,
) -> None:
    figure = view.to_figure()
    names = [trace.name for trace in figure.data]
    assert "Time to first token, p95" in names
    assert len(set(names)) == len(names)
    (change,) = {shape.x0 for shape in figure.layout.shapes}
    assert change == pytest.approx(13.0, abs=0.3)
    assert all(len(trace.x) <= 400 for trace in figure.data)
