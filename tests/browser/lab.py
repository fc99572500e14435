"""JupyterLab, or Notebook 7, with one notebook open in a real browser."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
from playwright.sync_api import Locator, Page, sync_playwright

from dashboard.browser import CHROMIUM, FLAGS
from support.kernels import SRC

PATIENCE_S = 60.0
"""How long a test waits for what must come; nothing is asserted of how soon it comes."""
BUSY = """# a busy cell
import pathlib
pathlib.Path("busy").touch()
while not pathlib.Path("enough").exists():
    sum(i * i for i in range(1000))"""
ARTIFACTS = Path(__file__).parents[1] / "artifacts"
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page
    "apputils-extension/notification": {
        "fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True,
    },
}


class Lab:
    """The page, and what a person does on it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        page.set_default_timeout(PATIENCE_S * 1e3)
        chosen = page.locator(".jp-Dialog button.jp-mod-accept", has_text="Select")
        page.add_locator_handler(chosen, lambda button: button.click())

    def run_all_above(self, text: str, first: str) -> None:
        """Return once the cell `first` has begun. On a loaded machine a page may send nothing to
        its kernel, or ask for a kernel that it has: then this is done again."""
        for attempt in (1, 2, 3):
            self.cell(text).locator(".cm-content").click()
            self.page.locator(".lm-MenuBar-item", has_text="Run").first.click()
            self.page.locator(".lm-Menu-item", has_text="Run All Above").click()
            try:
                self.wait_until(lambda: self.prompt(first).strip() != "[ ]:", 20)
                return
            except TimeoutError:
                self.screenshot(f"cells-not-started-{attempt}")
        raise TimeoutError("no cell was started")

    def wait_until(self, what: Callable[[], bool], timeout: float = PATIENCE_S) -> None:
        until = time.monotonic() + timeout
        while not what():
            if time.monotonic() > until:
                raise TimeoutError("the page did not come so far in time")
            self.page.wait_for_timeout(100)

    def cell(self, text: str) -> Locator:
        return self.page.locator(".jp-CodeCell", has_text=text).first

    def run_cell(self, text: str) -> None:
        self.cell(text).locator(".cm-content").click()
        self.page.keyboard.press("Shift+Enter")

    def ended(self, text: str) -> bool:
        """Whether the cell has been run to its end."""
        return self.prompt(text).strip() not in ("[ ]:", "[*]:")

    @contextmanager
    def busy(self, folder: Path) -> Iterator[None]:
        """While the block runs, the notebook's cell BUSY computes."""
        self.run_cell("# a busy cell")
        self.wait_until((folder / "busy").exists)
        yield
        assert not self.ended("# a busy cell"), "it computed no more"
        (folder / "enough").touch()
        self.wait_until(lambda: self.ended("# a busy cell"))

    def prompt(self, text: str) -> str:
        """`[*]:` while the cell runs, `[7]:` when it has."""
        return self.cell(text).locator(".jp-InputPrompt").inner_text()

    def knob(self, name: str) -> Locator:
        return self.page.locator(f".llmserve-knob-{name}").first

    def drag(self, name: str, pixels: int) -> int:
        """Move a slider with the mouse; the value that it shows then. What grows above it may
        push it away under the mouse: then once more, as a person would."""
        before = shown = self.shown(name)
        for _ in range(5):
            if shown == before:
                self._drag(name, pixels)
                shown = self.shown(name)
        return shown

    def shown(self, name: str) -> int:
        return int(self.knob(name).locator(".widget-readout").inner_text())

    def _drag(self, name: str, pixels: int) -> None:
        knob = self.knob(name)
        knob.scroll_into_view_if_needed()
        box = knob.locator(".noUi-handle").bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + pixels, y, steps=5)
        self.page.mouse.up()

    @property
    def dashboard(self) -> Locator:
        """Charts and controls together."""
        shown = self.page.locator("[data-llmserve=dashboard]").first
        return self.page.locator(".jp-OutputArea-child").filter(has=shown).first

    def data(self, name: str) -> int:
        """A figure that the dashboard tells of itself: points, marks, seq."""
        told = self.page.locator("[data-llmserve=dashboard]").first.get_attribute(f"data-{name}")
        return int(told or 0)

    def screenshot(self, name: str, part: Locator | None = None) -> Path:
        ARTIFACTS.mkdir(exist_ok=True)
        path = ARTIFACTS / f"{name}.png"
        if part is None:
            self.page.screenshot(path=path)
            return path
        size, box = self.page.viewport_size, part.bounding_box()
        assert size is not None
        assert box is not None
        self.page.set_viewport_size({"width": size["width"], "height": int(box["height"]) + 200})
        part.evaluate("part => part.scrollIntoView({block: 'start'})")
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(500)  # drawn anew
        part.screenshot(path=path)
        self.page.set_viewport_size(size)
        return path


PATHS = {"jupyterlab": "lab/tree", "notebook": "notebooks"}
"""Where each application shows a notebook."""


@contextmanager
def lab(notebook: Path, application: str = "jupyterlab") -> Iterator[Lab]:
    """A server on the notebook's folder, and a browser on the notebook, its kernel ready."""
    token = secrets.token_hex(16)
    with server(notebook.parent, token, application) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1640, "height": 1500})
        opened = Lab(page)
        try:
            page.goto(f"{url}/{PATHS[application]}/{notebook.name}?token={token}", timeout=120_000)
            opened.wait_until(lambda: _kernel_is_idle(f"{url}/api/sessions?token={token}"), 120)
            if application == "jupyterlab":
                page.keyboard.press("Control+b")  # the side bar is in the way of the charts
            yield opened
        except BaseException:
            opened.screenshot("failed")
            raise
        finally:
            browser.close()


@contextmanager
def server(folder: Path, token: str, application: str = "jupyterlab") -> Iterator[str]:
    home = folder / ".jupyter"
    for name, settings in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    environment = {
        **os.environ,
        "PYTHONPATH": str(SRC),
        "JUPYTER_CONFIG_DIR": str(home),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [
                sys.executable, "-m", application, "--no-browser", "--allow-root",
                "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0",
                f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
            ],
            env=environment, stdout=log, stderr=log, cwd=folder,
        )
    try:
        yield _address(server, home)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _address(server: subprocess.Popen[bytes], home: Path) -> str:
    """Where it serves, as it tells once it does."""
    told = home / "runtime" / f"jpserver-{server.pid}.json"
    until = time.monotonic() + 2 * PATIENCE_S
    while time.monotonic() < until and server.poll() is None:
        with suppress(OSError, ValueError):  # it is starting, or just writing
            return f"http://127.0.0.1:{json.loads(told.read_text())['port']}"
        time.sleep(0.2)
    raise RuntimeError(f"Jupyter did not start:\n{(home / 'log').read_text()[-2000:]}")


def _kernel_is_idle(sessions: str) -> bool:
    """Whether the page has started its kernel and is connected to it."""
    with urllib.request.urlopen(sessions, timeout=PATIENCE_S) as answer:
        kernels = [session["kernel"] for session in json.load(answer)]
    return any(k["execution_state"] == "idle" and k["connections"] for k in kernels)


def notebook_of(cells: Sequence[str], path: Path) -> Path:
    """A notebook with these cells of code, not yet run."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata["kernelspec"] = {
        "name": "python3", "display_name": "Python 3", "language": "python",
    }
    nbformat.write(made, path)
    return path
