"""A real browser page that runs the widget as anywidget would, wired to a `Desk` in this process.

Only Jupyter is left out between the two: the loader, the module, the codec and plotly are real.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from playwright.sync_api import Browser, Page, sync_playwright

from dashboard.parts import Wire
from llmserve.dashboard.charts import Charts
from llmserve.dashboard.controls import Controls

CHROMIUM = "/usr/bin/chromium"
PATIENCE_S = 60.0
"""How long a test waits for what must come, on however slow a machine."""
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]
_DARK = {
    "--jp-layout-color0": "#111111",
    "--jp-layout-color1": "#212121",
    "--jp-ui-font-color1": "rgba(255, 255, 255, 1)",
    "--jp-ui-font-color2": "rgba(255, 255, 255, 0.7)",
    "--jp-border-color1": "#616161",
    "--jp-border-color2": "#424242",
}
_HTML = "<!doctype html><html><body style='margin:0'><div id='place'></div></body></html>"
# A model as anywidget hands it to the module: custom messages, and other widgets by their id.
_MODEL = """
(ids) => {
  const listeners = new Set();
  const controls = Object.fromEntries(ids.map((id) => [id, {
    get(trait) { return this[trait]; },
    set(trait, value) { this[trait] = value; },
    save_changes() {},
  }]));
  window.harness = { controls, deliver(content, buffers) {
    const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const views = buffers.map((text) => new DataView(bytes(text).buffer));
    for (const listener of [...listeners]) listener(content, views);
  } };
  const model = {
    send(content, _, buffers) {
      const texts = (buffers ?? []).map((part) => {
        let text = "";
        for (const byte of new Uint8Array(part)) text += String.fromCharCode(byte);
        return btoa(text);
      });
      toKernel(content, texts);
    },
    on: (_, callback) => listeners.add(callback),
    off: (_, callback) => listeners.delete(callback),
    widget_manager: { get_model: async (id) => controls[id] },
  };
  window.harness.model = model;
}
"""
_RENDER = """
async (loader) => {
  const url = URL.createObjectURL(new Blob([loader], { type: "text/javascript" }));
  const widget = (await import(url)).default();
  const el = document.getElementById("place");
  window.harness.leave = await widget.render({ model: window.harness.model, el });
}
"""


class DeskLike(Protocol):
    """The kernel's side: one dashboard, and its wire."""

    @property
    def controls(self) -> Controls: ...
    @property
    def charts(self) -> Charts: ...
    @property
    def wire(self) -> Wire: ...
    def update(self) -> None: ...


D = TypeVar("D", bound=DeskLike)


class Screen(Generic[D]):
    """The page and the desk. Messages of the page wait here until `pump` hands them over."""

    def __init__(self, page: Page, desk: D) -> None:
        self.page = page
        self.desk = desk
        self.heard: list[dict[str, Any]] = []
        self._waiting: list[tuple[dict[str, Any], list[str]]] = []
        page.expose_function("toKernel", lambda *message: self._waiting.append(message))
        page.set_content(_HTML)
        places = desk.controls.places().values()
        ids = [p[part] for p in places for part in ("value", "none") if p[part] is not None]
        page.evaluate(_MODEL, ids)

    def start(self) -> None:
        self.page.evaluate(f"(loader) => {{ window.harness.started = ({_RENDER})(loader); }}",
                           self.desk.charts._esm)
        self.page.wait_for_timeout(0)
        self.until("module")
        self.page.evaluate("() => window.harness.started")
        self.until("hello")
        self.page.wait_for_selector("[data-llmserve=dashboard]:not([data-state=waiting])")

    def until(self, kind: str) -> None:
        """Hand messages over until one of this kind was among them."""
        self._until(lambda kinds: kind in kinds, f"the page never said {kind}")

    def until_true(self, done: Callable[[], bool]) -> None:
        """Hand messages over until it is so."""
        self._until(lambda _: done(), "it never came so far")

    def _until(self, over: Callable[[list[str]], bool], else_: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not over(self.pump()):
            assert time.monotonic() < until, else_
            self.page.wait_for_timeout(20)

    def wait(self, holds: str, argument: object = None) -> None:
        """Until this function in the page is true of the argument."""
        self.until_true(lambda: bool(self.page.evaluate(holds, argument)))

    def pump(self) -> list[str]:
        """Hand over what each side said; the kinds of the page's messages."""
        waiting, self._waiting = self._waiting, []
        for content, texts in waiting:
            self.heard.append(content)
            self.desk.wire.hear(content, *(base64.b64decode(text) for text in texts))
        for content, buffers in self.desk.wire.take_all():
            self.deliver(content, buffers)
        return [content["kind"] for content, _ in waiting]

    def deliver(self, content: dict[str, Any], buffers: list[bytes]) -> None:
        texts = [base64.b64encode(part).decode() for part in buffers]
        self.page.evaluate("([c, b]) => window.harness.deliver(c, b)", [content, texts])

    def update(self) -> None:
        self.desk.update()
        self.pump()

    def in_step(self) -> None:
        """Until the page knows all that it was sent: one that was slow may have asked anew."""
        self.until_true(lambda: self.data("seq") == self.desk.charts._link.seq)

    def drawn(self) -> None:
        """Until its panels show all that it was sent, and stand still."""
        self.in_step()
        self.page.wait_for_selector("[data-llmserve=dashboard][data-drawing=false]")

    def theme(self, dark: bool) -> None:
        for name, value in _DARK.items() if dark else ():
            self.page.evaluate(
                "([n, v]) => document.documentElement.style.setProperty(n, v)", [name, value]
            )

    @property
    def root(self) -> Any:
        return self.page.locator("[data-llmserve=dashboard]")

    def data(self, name: str) -> int:
        return int(self.root.get_attribute(f"data-{name}") or -1)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def screen(
    browser: Browser, desk: D, width: int = 1280, height: int = 1300
) -> Iterator[Screen[D]]:
    with browser.new_page(viewport={"width": width, "height": height}) as page:
        page.set_default_timeout(PATIENCE_S * 1e3)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield Screen(page, desk)
        assert errors == []
