"""The widget in a real Chromium, wired to the kernel's side of it without Jupyter between."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from dashboard.browser import PATIENCE_S, Screen, screen
from dashboard.parts import Desk

pytestmark = pytest.mark.browser
Shown = Screen[Desk]
PANELS = (
    "ttft", "itl", "e2e", "throughput", "goodput", "requests", "waiting", "batch", "step", "kv",
    "memory", "device",
)  # fmt: skip


@pytest.fixture
def shown(browser: Browser) -> Iterator[Shown]:
    with screen(browser, Desk.lay()) as page:
        page.start()
        yield page


def play(shown: Shown, rows: int) -> None:
    for _ in range(rows):
        shown.desk.parts.play(0.2, ttft_s=0.1)
        shown.update()
    shown.in_step()


def test_every_panel_is_drawn_and_moves_with_every_update(shown: Shown) -> None:
    shown.desk.parts.sample_host(1.0)
    play(shown, 5)
    assert shown.data("points") == 6
    assert shown.page.locator(".panel").count() == len(PANELS)
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


def test_a_knob_change_is_a_line_on_every_panel_and_tells_itself_on_hover(shown: Shown) -> None:
    play(shown, 3)
    shown.desk.parts.change({"max_num_seqs": 8}, "http")
    play(shown, 3)
    assert shown.data("marks") == 1
    shown.drawn()
    for panel in PANELS:
        shown.page.locator(f"[data-llmserve=panel-{panel}] .shapelayer path").wait_for(
            state="attached"
        )
    shown.page.locator("[data-llmserve=panel-ttft] .scatterlayer .points path").hover(force=True)
    hover = shown.page.locator("[data-llmserve=panel-ttft] .hoverlayer")
    hover.get_by_text("max_num_seqs").wait_for()
    assert "32 → 8" in (hover.text_content() or "")


def test_a_lost_update_is_noticed_and_a_snapshot_heals_it(shown: Shown) -> None:
    play(shown, 2)
    shown.desk.parts.play(0.2, ttft_s=0.1)
    shown.desk.update()
    shown.desk.wire.take()  # lost on the way
    shown.desk.parts.play(0.2, ttft_s=0.1)
    shown.update()
    shown.until("hello")
    shown.in_step()
    assert shown.data("points") == 5


def test_the_page_acknowledges_by_its_name_and_says_when_it_leaves(shown: Shown) -> None:
    play(shown, 1)
    shown.until_true(
        lambda: any((said["kind"], said.get("seq")) == ("ack", 1) for said in shown.heard)
    )
    names = {message.get("page") for message in shown.heard if message["kind"] != "module"}
    assert len(names) == 1
    assert all(names)
    shown.page.evaluate("() => window.harness.leave()")
    shown.until("bye")
    shown.desk.update()
    assert shown.desk.wire.take() == []


def test_a_knob_changed_elsewhere_moves_its_control_in_the_browser(shown: Shown) -> None:
    places = shown.desk.controls.places()
    shown.desk.parts.change({"max_num_seqs": 8, "policy": "priority"}, "magic")
    play(shown, 1)
    holds = "([id, trait, value]) => window.harness.controls[id][trait] === value"
    shown.page.wait_for_function(holds, arg=[places["max_num_seqs"]["value"], "value", 8])
    shown.page.wait_for_function(holds, arg=[places["policy"]["value"], "index", 1])


def test_an_empty_session_says_what_to_do_and_an_ended_one_that_it_ended(shown: Shown) -> None:
    hint = shown.page.locator("[data-llmserve=empty]")
    shown.until_true(hint.is_visible)
    assert "playground below" in (hint.text_content() or "")
    assert "%%llmserve" in (hint.text_content() or "")
    play(shown, 1)
    assert not hint.is_visible()
    shown.desk.charts.end("This session has ended.")
    shown.pump()
    shown.page.wait_for_selector("[data-llmserve=dashboard][data-state=ended]")
    assert shown.page.locator("[data-llmserve=status]").text_content() == "This session has ended."


def test_an_ended_session_that_served_nothing_asks_for_no_requests(shown: Shown) -> None:
    shown.desk.charts.end("This session has ended.")
    shown.pump()
    shown.page.wait_for_selector("[data-llmserve=dashboard][data-state=ended]")
    assert not shown.page.locator("[data-llmserve=empty]").is_visible()


def test_a_page_whose_kernel_is_gone_says_so_and_offers_nothing_until_it_is_back(
    shown: Shown,
) -> None:
    send = shown.page.locator("[data-llmserve=send]")
    shown.until_true(send.is_enabled)
    shown.page.wait_for_selector("[data-llmserve=dashboard][data-state=silent]")
    words = "() => document.querySelector('[data-llmserve=state]').textContent"
    said = re.compile(r"no figures for (\d+) s: the kernel is busy or gone")
    first = said.fullmatch(shown.page.evaluate(words))
    assert first is not None
    shown.page.wait_for_function(f"w => ({words})() !== w", arg=first[0])
    later = said.fullmatch(shown.page.evaluate(words))
    assert later is not None
    assert int(later[1]) > int(first[1]) >= 3
    assert send.is_disabled()
    assert not shown.page.locator("[data-llmserve=empty]").is_visible()
    shown.until("hello")
    shown.page.wait_for_selector("[data-llmserve=dashboard][data-state=live]")
    assert send.is_enabled()
    assert shown.page.locator("[data-llmserve=empty]").is_visible()


def test_the_page_draws_the_picture_that_stays_in_the_notebook(shown: Shown) -> None:
    play(shown, 5)
    drawn: list[bytes | None] = []
    asking = threading.Thread(target=lambda: drawn.append(shown.desk.charts.picture(PATIENCE_S)))
    asking.start()
    shown.until("picture")
    asking.join(PATIENCE_S)
    assert drawn[0] is not None
    assert drawn[0].startswith(b"\x89PNG")


@pytest.mark.parametrize("width", [800, 1280, 1920])
@pytest.mark.parametrize("dark", [False, True])
def test_panels_fill_the_width_without_overlap_in_both_themes(
    browser: Browser, width: int, dark: bool
) -> None:
    with screen(browser, Desk.lay(), width) as shown:
        shown.theme(dark)
        shown.start()
        play(shown, 3)
        shown.drawn()
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


def test_a_long_recording_is_drawn_by_at_most_a_few_hundred_points(shown: Shown) -> None:
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


def record(shown: Shown, rows: int) -> None:
    """So many rows while the page is away, and then it comes back."""
    for _ in range(rows):
        shown.desk.parts.play(0.2, ttft_s=0.1)
        shown.desk.recorder.sample()
    shown.desk.wire.hear({"kind": "hello"})
    shown.pump()


def axis(shown: Shown, panel: str = "ttft") -> list[float]:
    ends: list[float] = shown.page.evaluate(
        "id => document.querySelector(`[data-llmserve=panel-${id}]`).layout.xaxis.range", panel
    )
    return ends


def test_a_paused_page_stands_still_and_loses_nothing(shown: Shown) -> None:
    record(shown, 60)
    shown.page.wait_for_function(
        "() => document.querySelector('[data-llmserve=panel-ttft]').layout?.xaxis.range[1] > 12"
    )
    shown.page.locator("[data-llmserve=pause]").click()
    shown.drawn()
    before, points = axis(shown), shown.data("points")
    play(shown, 8)
    shown.drawn()
    assert axis(shown) == before
    assert shown.data("points") == points + 8
    shown.page.locator("[data-llmserve=pause]").click()
    shown.page.wait_for_function(
        "e => document.querySelector('[data-llmserve=panel-ttft]').layout.xaxis.range[1] > e",
        arg=before[1],
    )


def test_one_cursor_stands_at_the_same_time_on_every_panel(shown: Shown) -> None:
    play(shown, 5)
    shown.drawn()
    box = shown.page.locator("[data-llmserve=panel-itl]").bounding_box()
    assert box is not None
    shown.page.mouse.move(box["x"] + 150, box["y"] + 100)
    cursors = shown.page.locator("[data-llmserve=cursor]:visible")
    shown.until_true(lambda: cursors.count() == len(PANELS))
    places = {cursors.nth(i).evaluate("e => e.style.left + e.dataset.time") for i in range(5)}
    assert len(places) == 1


def test_dragging_over_a_panel_zooms_all_of_them_and_a_button_undoes_it(shown: Shown) -> None:
    record(shown, 100)
    shown.drawn()
    box = shown.page.locator("[data-llmserve=panel-itl]").bounding_box()
    assert box is not None
    shown.page.mouse.move(box["x"] + 150, box["y"] + 100)
    shown.page.mouse.down()
    shown.page.mouse.move(box["x"] + 250, box["y"] + 100, steps=4)
    shown.page.mouse.up()
    shown.page.wait_for_function(
        "() => document.querySelector('[data-llmserve=panel-kv]').layout.xaxis.range[0] > 3"
    )
    shown.page.wait_for_function(
        "() => new Set([...document.querySelectorAll('.panel')]"
        ".map((panel) => panel.layout.xaxis.range.join())).size === 1"
    )
    assert axis(shown)[0] > 3
    shown.page.locator("[data-llmserve=unzoom]").click()
    shown.page.wait_for_function(
        "() => document.querySelector('[data-llmserve=panel-kv]').layout.xaxis.range[0] === 0"
    )


def test_a_line_that_was_switched_off_in_the_legend_stays_off(shown: Shown) -> None:
    play(shown, 5)
    shown.drawn()
    toggle = shown.page.locator("[data-llmserve=panel-ttft] .legendtoggle").first
    toggle.wait_for(state="attached")
    toggle.click(force=True)
    hidden = (
        "() => document.querySelector('[data-llmserve=panel-ttft]')"
        "._fullData[0].visible === 'legendonly'"
    )
    shown.page.wait_for_function(hidden)
    play(shown, 3)
    shown.drawn()
    assert shown.page.evaluate(hidden)


def test_the_cursor_tells_the_figures_of_every_panel_at_its_time(shown: Shown) -> None:
    play(shown, 5)
    shown.drawn()
    box = shown.page.locator("[data-llmserve=panel-itl]").bounding_box()
    assert box is not None
    shown.page.mouse.move(box["x"] + 150, box["y"] + 100)
    figures = "[data-llmserve=panel-{}] [data-llmserve=cursor]"
    read = "e => [e.dataset.figures, getComputedStyle(e, '::before').content]"
    shown.page.locator(figures.format("ttft")).wait_for()
    told, drawn = shown.page.locator(figures.format("memory")).evaluate(read)
    assert told.endswith("\nin use by all: 9")
    assert "in use by all: 9" in drawn
    ttft, _ = shown.page.locator(figures.format("ttft")).evaluate(read)
    assert ttft == "p50: 100 ms\np95: 100 ms\np99: 100 ms"


def test_a_cursor_under_a_mouse_that_stands_still_tells_of_what_comes(shown: Shown) -> None:
    record(shown, 60)
    shown.drawn()
    box = shown.page.locator("[data-llmserve=panel-itl]").bounding_box()
    assert box is not None
    shown.page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 100)
    cursor = shown.page.locator("[data-llmserve=panel-kv] [data-llmserve=cursor]")
    before = float((cursor.get_attribute("data-time") or "").removesuffix(" s"))
    play(shown, 10)
    shown.page.wait_for_function(
        "t => parseFloat(document.querySelector('[data-llmserve=panel-kv]"
        " [data-llmserve=cursor]').dataset.time) > t",
        arg=before + 1.5,
    )


def test_a_panel_is_read_zoomed_and_its_lines_switched_by_keys_that_reach_no_notebook(
    shown: Shown,
) -> None:
    record(shown, 100)
    shown.drawn()
    shown.page.evaluate(
        "() => { window.leaked = 0; document.addEventListener('keydown', () => leaked++); }"
    )
    panel = shown.page.locator("[data-llmserve=panel-itl]")
    panel.focus()
    for _ in range(3):
        shown.page.keyboard.press("Shift+ArrowLeft")
    cursor = panel.locator("[data-llmserve=cursor]")
    cursor.wait_for()
    assert float((cursor.get_attribute("data-time") or "").removesuffix(" s")) == pytest.approx(
        axis(shown)[1] * 0.85, abs=0.2
    )
    before = axis(shown)
    shown.page.keyboard.press("+")
    width = "w => { const [a, b] = document.querySelector('[data-llmserve=panel-kv]')"
    shown.page.wait_for_function(
        width + ".layout.xaxis.range; return Math.abs(b - a - w) < 0.01; }",
        arg=(before[1] - before[0]) / 2,
    )
    shown.page.keyboard.press("Escape")
    shown.page.wait_for_function(
        "() => document.querySelector('[data-llmserve=panel-kv]').layout.xaxis.range[0] === 0"
    )
    shown.page.keyboard.press("2")
    hidden = (
        "() => document.querySelector('[data-llmserve=panel-itl]')"
        "._fullData[1].visible === 'legendonly'"
    )
    shown.page.wait_for_function(hidden)
    assert shown.page.evaluate("() => window.leaked") == 3  # the shift key itself, three times
