"""The line that stays alive while a cell waits."""

from __future__ import annotations

import re
import threading

import pytest

from llmserve.core.progress import line
from llmserve.entrypoints.magics import display
from llmserve.entrypoints.magics.display import Bundle, Elapsed, Update


class Page:
    """Stands for the notebook's page: what was shown, and a bell at every update."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.updated = threading.Event()

    def show(self, bundle: Bundle) -> Update:
        self.shown.append(bundle["text/plain"])

        def update(bundle: Bundle) -> None:
            self.shown.append(bundle["text/plain"])
            self.updated.set()

        return update


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    page = Page()
    monkeypatch.setattr(display, "show", page.show)
    return page


def test_a_wait_shows_at_once_and_counts_while_it_lasts(page: Page) -> None:
    with Elapsed("Starting", after_s=0.001, every_s=0.001):
        assert page.shown[0] == "Starting …"
        assert page.updated.wait(60)
    assert re.fullmatch(r"Starting … \d+ s", page.shown[1])


def test_nothing_is_drawn_after_the_block_and_its_thread_has_ended(page: Page) -> None:
    with Elapsed("Starting", after_s=0.001, every_s=0.001):
        assert page.updated.wait(60)
    assert not [t for t in threading.enumerate() if t.name == "llmserve-elapsed"]


def test_an_interrupt_while_it_begins_leaves_no_line_that_counts_on(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, begun = threading.Thread.start, []

    def interrupted(thread: threading.Thread) -> None:
        begun.append(thread)
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with pytest.raises(KeyboardInterrupt), Elapsed("Starting"):
        pass
    begun[0].join(60)
    assert not begun[0].is_alive()
    assert line() is not None


def test_a_failure_is_told_on_the_line(page: Page) -> None:
    with pytest.raises(RuntimeError), Elapsed("Starting"):
        raise RuntimeError
    assert page.shown[-1] == "Starting: not done."


def test_beside_it_no_second_line_tells_of_the_same_wait(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert line() is not None
    with Elapsed("Starting"):
        assert line() is None
    assert line() is not None
