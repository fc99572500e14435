"""The widget in a real Chromium, wired to the kernel's side of it without Jupyter between."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ui.browser import Screen, screen
from ui.parts import Desk

pytestmark = pytest.mark.browser
PANELS = ("ttft", "itl", "throughput", "requests", "memory")


@pytest.fixture
def shown() -> Iterator[Screen]:
    with screen(Desk.lay()) as page:
        page.start()
        yield page


def play(shown: Screen, rows: int) -> None:
    for _ in range(rows):
        shown.desk.parts.play(0.2, ttft_s=0.1)
        shown.update()


def test_five_panels_are_drawn_and_move_with_every_update(shown: Screen) -> None:
    shown.desk.parts.sample_host(1.0)
    play(shown, 5)
    assert shown.data("points") == 6
    for panel in PANELS:
        lines = shown.page.locator(f"[data-llmserve=panel-{panel}] .scatterlayer .js-line")
        lines.first.wait_for(state="attached")
        path = "el => el.getAttribute('d')"
        before = lines.first.evaluate(path)
        play(shown, 2)
        shown.page.wait_for_function(
            "([id, old]) => document.querySelector(`[data-llmserve=panel-${id}] .js-line`)"
            ".getAttribute('d') !== old",
            arg=[panel, before],
        )


def test_a_knob_change_is_a_line_on_every_panel_and_tells_itself_on_hover(shown: Screen) -> None:
    play(shown, 3)
    shown.desk.parts.change({"max_num_seqs": 8}, "http")
    play(shown, 3)
    assert shown.data("marks") == 1
    for panel in PANELS:
        shown.page.locator(f"[data-llmserve=panel-{panel}] .shapelayer path").wait_for(
            state="attached"
        )
    shown.page.locator("[data-llmserve=panel-ttft] .scatterlayer .points path").hover(force=True)
    hover = shown.page.locator("[data-llmserve=panel-ttft] .hoverlayer")
    hover.get_by_text("max_num_seqs").wait_for()
    assert "32 → 8" in (hover.text_content() or "")


def test_a_lost_update_is_noticed_and_a_snapshot_heals_it(shown: Screen) -> None:
    play(shown, 2)
    shown.desk.parts.play(0.2, ttft_s=0.1)
    shown.desk.update()
    shown.desk.wire.take()  # lost on the way
    play(shown, 1)
    shown.until("hello")
    assert shown.data("points") == 5
    assert shown.data("seq") == shown.desk.charts._link.seq


def test_the_page_acknowledges_and_says_when_it_leaves(shown: Screen) -> None:
    play(shown, 1)
    assert {"kind": "ack", "seq": 1} in shown.heard
    shown.page.evaluate("() => window.harness.leave()")
    shown.until("bye")
    shown.desk.update()
    assert shown.desk.wire.take() == []


def test_a_knob_changed_elsewhere_moves_its_control_in_the_browser(shown: Screen) -> None:
    places = shown.desk.controls.places()
    shown.desk.parts.change({"max_num_seqs": 8, "policy": "priority"}, "magic")
    play(shown, 1)
    holds = "([id, trait, value]) => window.harness.controls[id][trait] === value"
    shown.page.wait_for_function(holds, arg=[places["max_num_seqs"]["value"], "value", 8])
    shown.page.wait_for_function(holds, arg=[places["policy"]["value"], "index", 1])


def test_an_empty_session_says_what_to_do_and_an_ended_one_that_it_ended(shown: Screen) -> None:
    hint = shown.page.locator("[data-llmserve=empty]")
    assert hint.is_visible()
    assert "%%llmserve" in (hint.text_content() or "")
    play(shown, 1)
    assert not hint.is_visible()
    shown.desk.charts.end("This session has ended.")
    shown.pump()
    shown.page.wait_for_selector("[data-llmserve=dashboard][data-state=ended]")
    assert shown.page.locator("[data-llmserve=status]").text_content() == "This session has ended."


def test_the_page_draws_the_picture_that_stays_in_the_notebook(shown: Screen) -> None:
    play(shown, 5)
    drawn: list[bytes | None] = []
    asking = threading.Thread(target=lambda: drawn.append(shown.desk.charts.picture(30)))
    asking.start()
    shown.until("picture")
    asking.join(30)
    assert drawn[0] is not None
    assert drawn[0].startswith(b"\x89PNG")


@pytest.mark.parametrize("width", [800, 1280, 1920])
@pytest.mark.parametrize("dark", [False, True])
def test_panels_fill_the_width_without_overlap_in_both_themes(width: int, dark: bool) -> None:
    with screen(Desk.lay(), width) as shown:
        shown.theme(dark)
        shown.start()
        play(shown, 3)
        boxes = [
            shown.page.locator(f"[data-llmserve=panel-{panel}] svg.main-svg").first.bounding_box()
            for panel in PANELS
        ]
        for box in boxes:
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
        corners = {(round(box["x"]), round(box["y"])) for box in boxes if box}
        assert len(corners) == len(PANELS)
        ink = shown.page.locator("[data-llmserve=panel-ttft] .gtitle").first.evaluate(
            "el => getComputedStyle(el).fill"
        )
        assert ink == ("rgb(255, 255, 255)" if dark else "rgb(33, 33, 33)")


def test_a_long_recording_is_drawn_by_at_most_a_few_hundred_points(shown: Screen) -> None:
    for _ in range(3000):
        shown.desk.parts.clock.advance(0.2)
        shown.desk.recorder.sample()
    shown.desk.wire.hear({"kind": "hello"})
    shown.pump()
    assert shown.data("points") == 3000
    shown.page.locator("[data-llmserve=window]").select_option("600")
    shown.page.wait_for_function(
        "() => document.querySelector('[data-llmserve=panel-throughput]').data[0].x.at(-1) > 590"
    )
    count = shown.page.evaluate(
        "() => document.querySelector('[data-llmserve=panel-throughput]').data[0].x.length"
    )
    assert 100 < count <= 400
