"""The tape, the table and the waterfall in a real Chromium, over a real service's events."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from dashboard.browser import Screen, screen
from dashboard.parts import Desk
from dashboard.story import burst
from llmserve.core.events import StepRecorded
from llmserve.core.types import StepRecord, StepRow

pytestmark = pytest.mark.browser
Shown = Screen[Desk]


@pytest.fixture(scope="module")
def told() -> Desk:
    desk = Desk.lay()
    burst(desk)
    return desk


@pytest.fixture
def shown(browser: Browser, told: Desk) -> Iterator[Shown]:
    with screen(browser, told, 1280, 1400) as page:
        page.start()
        page.page.wait_for_selector("[data-llmserve=tape-canvas][data-steps]")
        yield page


def canvas(shown: Shown, name: str) -> int:
    return int(
        shown.page.locator("[data-llmserve=tape-canvas]").get_attribute(f"data-{name}") or -1
    )


def lines(shown: Shown) -> int:
    return shown.page.locator("[data-llmserve=requests] tbody tr").count()


def test_why_it_is_slow_stands_above_the_charts_in_words_and_bars(shown: Shown) -> None:
    why = shown.page.locator("[data-llmserve=why]")
    text = why.inner_text()
    assert "waiting for a slot" in text
    assert "max_num_seqs = 32 binds" in text
    assert "4 → 32 at step" in text
    width = "e => e.getBoundingClientRect().width"
    under = why.locator("[data-llmserve=bar-under]").all_inner_texts()
    assert under == ["max_num_seqs = 4", "max_num_seqs = 32 now"]
    for bar in why.locator("[data-llmserve=bar-TTFT]").all():
        assert bar.locator("span").first.evaluate(width) > 0.9 * bar.evaluate(width)


def test_hovering_a_cell_tells_tokens_kv_and_why_it_waited(shown: Shown) -> None:
    place = shown.page.locator("[data-llmserve=tape-canvas]")
    place.scroll_into_view_if_needed()
    place.focus()
    for _ in range(12):
        shown.page.keyboard.press("-")
    shown.page.wait_for_function(
        "() => { const { from, to, steps } = "
        "document.querySelector('[data-llmserve=tape-canvas]').dataset; "
        "return to - from === +steps; }"
    )
    box = place.bounding_box()
    assert box is not None
    tip, seen = shown.page.locator("[data-llmserve=tape-tip]"), set()
    for x in range(12):
        for y in range(24):
            shown.page.mouse.move(box["x"] + 100 + x * 95, box["y"] + 4 + y * 10)
            if tip.is_visible():
                seen.add(tip.inner_text())
    told = "\n".join(seen)
    kv = re.findall(r"decode: 1 token, (\d+) tokens \((\d+) blocks?\) in its KV", told)
    assert kv
    assert all(int(blocks) == -(-int(tokens) // 16) for tokens, blocks in kv)
    assert re.search(r"KV of all [\d,]+ tokens \(\d+ blocks\)", told)
    assert any("waiting, cap: at most so many run at once" in text for text in seen)


def test_a_click_on_the_tape_selects_and_shows_the_waterfall(shown: Shown) -> None:
    place = shown.page.locator("[data-llmserve=tape-canvas]")
    place.scroll_into_view_if_needed()
    assert "Click a request" in shown.page.locator("[data-llmserve=waterfall]").inner_text()
    rows = canvas(shown, "rows")
    assert rows > 0
    place.click(position={"x": 400, "y": 4})
    shown.page.wait_for_selector("[data-llmserve=tape-canvas][data-selected]:not([data-selected=''])")
    shown.page.wait_for_selector("tr.selected")
    fall = shown.page.locator("[data-llmserve=waterfall]").inner_text()
    assert "prefill" in fall
    assert "decode" in fall


def test_a_click_in_the_table_selects_on_the_tape_and_moves_it_there(shown: Shown) -> None:
    line = shown.page.locator("tr[data-request]").last
    number = line.get_attribute("data-request")
    before = canvas(shown, "from")
    line.click()
    shown.page.wait_for_selector(f"[data-llmserve=tape-canvas][data-selected='{number}']")
    shown.page.wait_for_function(
        "f => +document.querySelector('[data-llmserve=tape-canvas]').dataset.from !== f", arg=before
    )


def test_the_table_is_filtered_by_tenant_class_and_state(shown: Shown) -> None:
    every = lines(shown)
    shown.page.locator("[data-llmserve=filter-tenant]").select_option("gold")
    gold = lines(shown)
    assert 0 < gold < every
    shown.page.locator("[data-llmserve=filter-tenant]").select_option("")
    shown.page.locator("[data-llmserve=filter-class]").select_option("1")
    assert lines(shown) == gold
    shown.page.locator("[data-llmserve=filter-state]").select_option("waiting")
    assert lines(shown) == 0
    assert "0 of " in shown.page.locator("[data-llmserve=requests-count]").inner_text()


def test_keys_move_zoom_and_select(shown: Shown) -> None:
    shown.page.locator("[data-llmserve=tape-canvas]").focus()
    start, end = canvas(shown, "from"), canvas(shown, "to")
    shown.page.keyboard.press("ArrowLeft")
    shown.page.wait_for_function(
        "f => +document.querySelector('[data-llmserve=tape-canvas]').dataset.from < f", arg=start
    )
    shown.page.keyboard.press("+")
    shown.page.keyboard.press("End")
    shown.page.keyboard.press("ArrowUp")
    shown.page.wait_for_selector("[data-llmserve=tape-canvas]:not([data-selected=''])")
    assert canvas(shown, "to") == end
    assert canvas(shown, "from") > start
    shown.page.keyboard.press("Escape")
    shown.page.wait_for_selector("[data-llmserve=tape-canvas][data-selected='']")


def test_the_table_is_one_stop_of_the_tab_key_and_keeps_the_focus_while_it_changes(
    shown: Shown,
) -> None:
    assert shown.page.locator("tr[data-request][tabindex='0']").count() == 1
    focused = "() => document.activeElement.dataset.request"
    shown.page.locator("tr[data-request]").first.focus()
    first = int(shown.page.evaluate(focused))
    shown.page.keyboard.press("ArrowDown")
    assert int(shown.page.evaluate(focused)) == first - 1
    shown.page.keyboard.press("Enter")
    shown.page.wait_for_selector(f"tr.selected[data-request='{first - 1}']")
    assert int(shown.page.evaluate(focused)) == first - 1
    shown.page.keyboard.press("Escape")
    shown.page.wait_for_selector("tr.selected", state="detached")


def test_a_lost_part_of_the_tape_is_noticed_and_the_whole_heals_it(browser: Browser) -> None:
    desk = Desk.lay()
    with screen(browser, desk) as shown:
        shown.start()
        for lost in (False, True, False):
            desk.parts.play(0.2, ttft_s=0.1)
            desk.update()
            if lost:
                sent = [m for m in desk.wire.take_all() if m[0]["kind"] != "tape"]
                desk.wire.sent.extend(sent)
            shown.pump()

        def whole() -> bool:
            desk.update()
            return canvas(shown, "steps") == 30

        shown.until_true(whole)


def test_ten_thousand_steps_of_256_requests_are_drawn(browser: Browser) -> None:
    desk = Desk.lay()
    for i in range(10_000):
        rows = tuple(StepRow(f"r{i // 40 + k}", "decode", 1) for k in range(256))
        record = StepRecord(
            index=i, start_s=1000 + 0.01 * i, duration_s=0.01, rows=rows, running=256, waiting=0,
            kv_used_tokens=1, kv_capacity_tokens=2, max_num_seqs=256, max_num_batched_tokens=512,
        )
        desk.recorder.tape(StepRecorded(t=1000 + 0.01 * i, record=record))
    with screen(browser, desk) as shown:
        shown.start()
        place = shown.page.locator("[data-llmserve=tape-canvas]")
        place.focus()
        for _ in range(20):
            shown.page.keyboard.press("-")
        shown.page.wait_for_function(
            "() => document.querySelector('[data-llmserve=tape-canvas]').dataset.from === '0'"
        )
        assert (canvas(shown, "to"), canvas(shown, "rows")) == (10_000, 505)


@pytest.mark.parametrize("width", [800, 1280, 1920])
def test_no_section_is_wider_than_the_page(browser: Browser, told: Desk, width: int) -> None:
    with screen(browser, told, width) as shown:
        shown.start()
        wide = shown.page.evaluate("() => document.documentElement.scrollWidth")
        assert wide <= width
