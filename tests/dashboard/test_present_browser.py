"""What a page shows is of now, and of what is under the mouse, whatever the page was doing."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from dashboard.browser import Screen, screen
from dashboard.parts import Desk
from dashboard.story import tell
from llmserve.bench.load.workload import Workload

pytestmark = pytest.mark.browser
Shown = Screen[Desk]
_RANGES = "() => [...document.querySelectorAll('.panel')].map((p) => p.layout?.xaxis.range)"
_ENDS_AT = f"t => ({_RANGES})().filter((r) => r && Math.abs(r[1] - t) < 0.01).length"
_IN_SIGHT = (
    "() => [...document.querySelectorAll('.panel')].map((p) => [p, p.getBoundingClientRect()])"
    ".filter(([, box]) => box.bottom > 0 && box.top < innerHeight).map(([p]) => p)"
)
PANELS = 12


@pytest.fixture
def low(browser: Browser) -> Iterator[Shown]:
    """A window so low that most panels are out of sight, after a minute of traffic."""
    desk = Desk.lay()
    with screen(browser, desk, 900, 300) as shown:
        shown.start()
        record(shown, 60)
        shown.drawn()
        yield shown


def record(shown: Shown, seconds: int) -> None:
    for _ in range(seconds):
        shown.desk.parts.play(1.0, ttft_s=0.1)
        shown.desk.recorder.sample()
    deliver(shown)


def deliver(shown: Shown) -> None:
    """The page asks anew, as one does that was away: the clock of the desk has leapt."""
    shown.desk.wire.hear({"kind": "hello"})
    shown.pump()
    shown.in_step()


def now(shown: Shown) -> float:
    recorder = shown.desk.recorder
    return float(recorder.rows(0)[1][-1])


def see_all(shown: Shown, holds: str, argument: object) -> None:
    """Scroll from end to end: of each panel in sight it comes to hold, without a word of the
    kernel, for nothing is handed over meanwhile."""
    height = shown.page.evaluate("() => document.documentElement.scrollHeight")
    seen = set[str]()
    for y in range(0, height, 150):
        shown.page.evaluate("y => scrollTo(0, y)", y)
        shown.page.wait_for_function(
            f"a => ({_IN_SIGHT})().every((p) => ({holds})(p, a))", arg=argument
        )
        seen |= set(shown.page.evaluate(f"() => ({_IN_SIGHT})().map((p) => p.dataset.llmserve)"))
    assert len(seen) == PANELS


def test_panels_that_come_into_sight_show_the_present_after_the_session_has_ended(
    low: Shown,
) -> None:
    assert low.page.evaluate(_ENDS_AT, now(low)) < PANELS
    record(low, 30)
    low.desk.charts.end("This session has ended.")
    deliver(low)
    low.page.wait_for_selector("[data-llmserve=dashboard][data-state=ended]")
    at_end = "(p, t) => p.layout && Math.abs(p.layout.xaxis.range[1] - t) < 0.01"
    see_all(low, at_end, now(low))


def test_after_a_change_of_theme_every_panel_is_in_it_without_the_kernel(low: Shown) -> None:
    see_all(low, "(p) => p.layout?.paper_bgcolor === 'rgb(255, 255, 255)'", None)
    low.theme(dark=True)
    see_all(low, "(p) => p.layout?.paper_bgcolor === 'rgb(17, 17, 17)'", None)


def test_after_another_width_every_panel_fills_its_cell(low: Shown) -> None:
    low.page.set_viewport_size({"width": 600, "height": 300})
    see_all(low, "(p) => p.layout?.width === Math.floor(p.getBoundingClientRect().width)", None)


def test_the_cursor_is_on_no_panel_that_shows_another_time(low: Shown) -> None:
    low.page.locator("[data-llmserve=window]").select_option("30")
    see_all(low, "(p) => p.layout && p.layout.xaxis.range[0] > 20", None)
    low.page.evaluate("() => scrollTo(0, 0)")
    record(low, 60)
    low.drawn()
    assert 0 < low.page.evaluate(_ENDS_AT, now(low)) < PANELS  # others show what was before
    # in sight whatever stands above the charts: the panel's place is asked for after it is there
    low.page.locator("[data-llmserve=panel-ttft]").scroll_into_view_if_needed()
    low.drawn()
    box = low.page.locator("[data-llmserve=panel-ttft]").bounding_box()
    assert box is not None
    low.page.mouse.move(box["x"] + box["width"] - 40, box["y"] + 100)
    shows = (
        "() => [...document.querySelectorAll('.panel')].map((p) => {"
        " const line = p.querySelector('[data-llmserve=cursor]');"
        " return [p.layout.xaxis.range, line && !line.hidden ? line.dataset.time : null]; })"
    )
    low.page.wait_for_selector("[data-llmserve=panel-ttft] [data-llmserve=cursor]")
    told = [(ends, seconds(t)) for ends, t in low.page.evaluate(shows)]
    assert any(t is None for _, t in told)
    times = {t for _, t in told if t is not None}
    assert len(times) == 1
    for (start, end), t in told:
        assert (t is not None) == (start <= times.copy().pop() <= end)


def seconds(words: str | None) -> float | None:
    if words is None:
        return None
    minutes, colon, rest = words.removesuffix(" s").rpartition(":")
    return 60 * float(minutes) + float(rest) if colon else float(rest)


def test_a_knob_change_s_words_go_with_it_when_the_panel_moves_on(browser: Browser) -> None:
    with screen(browser, Desk.lay()) as shown:
        shown.start()
        record(shown, 20)
        shown.desk.parts.change({"max_num_seqs": 8}, "http")
        record(shown, 2)
        shown.page.locator("[data-llmserve=window]").select_option("30")
        shown.drawn()
        panel = shown.page.locator("[data-llmserve=panel-ttft]")
        panel.locator(".scatterlayer .points path").hover(force=True)
        words = panel.locator(".hoverlayer .hovertext")
        words.wait_for()
        record(shown, 25)
        shown.drawn()
        shown.until_true(lambda: words.count() == 0)


def test_the_tape_s_tooltip_is_of_the_step_that_is_under_the_mouse_now(browser: Browser) -> None:
    desk = Desk.lay()
    with screen(browser, desk, 1280, 1400) as shown:
        shown.start()
        record(shown, 30)  # ten steps each
        place = shown.page.locator("[data-llmserve=tape-canvas]")
        place.scroll_into_view_if_needed()
        box = place.bounding_box()
        assert box is not None
        tip = shown.page.locator("[data-llmserve=tape-tip]")
        for y in range(2, 240, 4):  # the newest request's row
            shown.page.mouse.move(box["x"] + box["width"] - 30, box["y"] + y)
            if tip.is_visible():
                break
        before = told_step(tip.inner_text())
        record(shown, 1)
        steps = canvas(shown, "steps")
        assert steps == 310

        def moved() -> bool:
            return not tip.is_visible() or told_step(tip.inner_text()) != before

        shown.until_true(moved)
        if tip.is_visible():
            assert told_step(tip.inner_text()) == before + 10
        shown.page.mouse.move(4, 4)
        shown.until_true(lambda: not tip.is_visible())
        record(shown, 1)
        shown.page.wait_for_timeout(0)
        assert not tip.is_visible()


def canvas(shown: Shown, name: str) -> int:
    place = shown.page.locator("[data-llmserve=tape-canvas]")
    return int(place.get_attribute(f"data-{name}") or -1)


def told_step(text: str) -> int:
    found = re.search(r"step (\d+)", text)
    assert found is not None
    return int(found[1])


def test_stopped_requests_are_crossed_on_the_tape_and_marked_in_the_table(browser: Browser) -> None:
    desk = Desk.lay()
    desk.parts.board.update({"max_num_seqs": 4})
    crowd = Workload(concurrency=8, requests=16, prompt_tokens=64, max_tokens=200)
    with screen(browser, desk, 1280, 1400) as shown:
        shown.start()
        tell(desk, [crowd], 1.0)
        deliver(shown)
        shown.until_true(lambda: canvas(shown, "stopped") == 8)
        table = shown.page.locator("[data-llmserve=requests] tbody")
        assert table.get_by_text("× stopped: abort", exact=True).count() == 8
        shown.page.locator("[data-llmserve=filter-state]").select_option("stopped")
        assert table.locator("tr").count() == 8
        heads = shown.page.locator("[data-llmserve=requests] th").all_inner_texts()
        assert "prompt (tokens)" in heads
        assert "reply (tokens)" in heads
        assert "KV cache" in shown.page.locator("[data-llmserve=panel-kv]").inner_text()


def test_no_label_has_an_exponent_or_is_cut_when_times_are_minutes_and_rates_are_large(
    browser: Browser,
) -> None:
    desk = Desk.lay()
    with screen(browser, desk, 800, 1400) as shown:
        shown.start()
        for _ in range(100):
            desk.parts.play(4.0, ttft_s=121.152, gap_s=0.00001, tokens=2000)
            desk.recorder.sample()
        deliver(shown)
        shown.page.locator("[data-llmserve=window]").select_option("600")
        shown.drawn()
        titles = shown.page.locator(".panel .gtitle").all_text_contents()
        assert "Time to first token (min)" in titles
        labels = shown.page.evaluate(
            "() => [...document.querySelectorAll('.panel')].flatMap((p) => { const room = "
            "p.getBoundingClientRect(); return [...p.querySelectorAll('text')].map((t) => { const "
            "b = t.getBoundingClientRect(); return [p.dataset.llmserve, t.textContent, "
            "b.left - room.left, room.right - b.right]; }); })"
        )
        assert len(labels) > 100
        for panel, text, left, right in labels:
            assert not re.search(r"\de[+\-]?\d", text), (panel, text)
            assert min(left, right) >= -1, (panel, text, left, right)


@pytest.mark.parametrize("width", [800, 1280])
def test_the_table_s_titles_and_cells_are_whole_and_on_one_line(
    browser: Browser, width: int
) -> None:
    desk = Desk.lay()
    tell(desk, [Workload(concurrency=8, requests=16, max_tokens=40)], 2)
    with screen(browser, desk, width, 1400) as shown:
        shown.start()
        shown.page.wait_for_selector("tr[data-request]")
        found = shown.page.evaluate(
            "() => { const box = document.querySelector('.scroll').getBoundingClientRect(); return "
            "[...document.querySelectorAll('.requests th, .requests td')]"
            ".filter((c) => c.offsetParent).map((c) => { const r = c.getBoundingClientRect();"
            " return [c.textContent, r.height, "
            "box.right - r.right, c.scrollWidth - c.clientWidth]; }); }"
        )
        assert len(found) > 80
        for text, height, room, hidden in found:
            assert height < 26, text
            assert room >= 0, text
            assert hidden <= 0, text
