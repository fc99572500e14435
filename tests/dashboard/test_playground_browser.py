"""The playground in a real Chromium, over a real session: its thread, its loop, its service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Browser

import llmserve
from dashboard.browser import Screen, screen
from dashboard.parts import Wire
from llmserve.dashboard.charts import Charts
from llmserve.dashboard.controls import Controls
from llmserve.dashboard.view import DashboardView

pytestmark = pytest.mark.browser


@dataclass
class Live:
    """A desk of a session whose own thread samples and pushes."""

    session: llmserve.Session
    charts: Charts
    controls: Controls
    wire: Wire

    def update(self) -> None: ...


Shown = Screen[Live]


@contextmanager
def playing(browser: Browser, **options: Any) -> Iterator[tuple[Shown, llmserve.Session]]:
    with llmserve.serve(engine="simulator", prefill_ms=5, **options) as session:
        view: DashboardView = session.dashboard()
        desk = Live(session, view.charts, view.controls, Wire(view.charts))
        with screen(browser, desk, 1280, 1500) as shown:
            shown.start()
            shown.page.locator("[data-llmserve=playground]").wait_for()
            yield shown, session


def part(shown: Shown, name: str) -> str:
    return f"[data-llmserve=playground] [data-llmserve={name}]"


def press(shown: Shown, name: str) -> None:
    """Once the page offers it: one that was slow offers nothing until the kernel is heard."""
    button = shown.page.locator(part(shown, name))
    shown.until_true(button.is_enabled)
    button.click()


def ask(shown: Shown, text: str, copies: int = 1, tokens: int = 20) -> None:
    shown.page.locator(part(shown, "copies")).select_option(str(copies))
    shown.page.locator(part(shown, "reply-tokens")).fill(str(tokens))
    shown.page.locator(part(shown, "prompt")).fill(text)
    press(shown, "send")


def shows(shown: Shown, name: str, text: str) -> None:
    shown.wait(
        "([s, t]) => document.querySelector(s)?.textContent.includes(t)", [part(shown, name), text]
    )


def here(session: llmserve.Session) -> int:
    snapshot = session.stats()
    return snapshot.running + snapshot.waiting


def test_a_prompt_is_answered_on_the_page_with_its_own_figures(browser: Browser) -> None:
    with playing(browser, decode_ms=5) as (shown, session):
        ask(shown, "a story about a lighthouse", copies=4, tokens=30)
        shows(shown, "play-words", "4 of 4 have ended")
        replies = shown.page.locator(part(shown, "reply"))
        assert replies.count() == 4
        for i in range(4):
            text, figures = replies.nth(i).inner_text().rsplit("\n", 1)
            assert len(text.split()) == 30
            assert figures.startswith("TTFT ")
            assert "tokens/s · 30 tokens · length" in figures
        assert session.stats().finished == {"length": 4}


def test_a_reply_grows_while_it_is_written_and_stop_cancels_it(browser: Browser) -> None:
    with playing(browser, decode_ms=50) as (shown, session):
        ask(shown, "a long story", tokens=1000)
        length = "s => document.querySelector(s)?.textContent.length > {}"
        shown.wait(length.format(0), part(shown, "reply-text"))
        before = shown.page.locator(part(shown, "reply-text")).inner_text()
        shown.wait(length.format(len(before)), part(shown, "reply-text"))
        press(shown, "stop")
        shows(shown, "reply-figures", "stopped")
        shown.until_true(lambda: here(session) == 0)
        assert shown.page.locator(part(shown, "stop")).is_disabled()
        assert session.stats().finished == {"abort": 1}


def test_the_load_button_starts_and_stops_a_load_at_the_chosen_rate(browser: Browser) -> None:
    with playing(browser, decode_ms=5) as (shown, session):
        rate = shown.page.locator(part(shown, "load-rate"))
        shown.until_true(rate.is_enabled)
        rate.fill("50")
        press(shown, "load")
        shows(shown, "load-words", "50 requests/s on average")
        shown.until_true(lambda: session.stats().finished.get("length", 0) > 10)
        assert shown.page.locator(part(shown, "load")).inner_text() == "Stop load"
        press(shown, "load")
        shows(shown, "load", "Start load")
        shown.until_true(lambda: here(session) == 0)
        assert set(session.requests()["tenant"]) == {"load"}


def test_a_page_that_closes_ends_its_reply_and_its_load(browser: Browser) -> None:
    with playing(browser, decode_ms=50) as (shown, session):
        press(shown, "load")
        ask(shown, "a long story", tokens=1000)
        shown.until_true(lambda: here(session) > 1)
        shown.page.evaluate("() => window.harness.leave()")
        shown.until("bye")
        shown.until_true(lambda: here(session) == 0)
        sent = len(session.requests())
        shown.page.wait_for_timeout(1000)  # at 5 requests/s, and none comes
        assert len(session.requests()) == sent


def test_keys_send_a_prompt_and_reach_no_notebook(browser: Browser) -> None:
    with playing(browser, decode_ms=5) as (shown, _):
        shown.page.evaluate(
            "() => { window.leaked = 0; document.addEventListener('keydown', () => leaked++); }"
        )
        shown.page.locator(part(shown, "prompt")).fill("hello")
        shown.page.locator(part(shown, "prompt")).press("a")
        shown.page.locator(part(shown, "prompt")).press("Control+Enter")
        shows(shown, "reply-figures", "100 tokens · length")
        assert shown.page.evaluate("() => window.leaked") == 0


def test_a_wrong_wish_is_answered_in_words_and_an_ended_session_offers_nothing(
    browser: Browser,
) -> None:
    with playing(browser, decode_ms=5, max_model_len=64) as (shown, session):
        ask(shown, "word " * 100)
        shows(shown, "reply-figures", "leave no room to answer")
        session.close()
        shown.until_true(lambda: shown.root.get_attribute("data-state") == "ended")
        for name in ("send", "stop", "load"):
            assert shown.page.locator(part(shown, name)).is_disabled()
