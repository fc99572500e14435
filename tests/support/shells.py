"""An IPython shell in this process, and what a cell put on the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config


@dataclass
class Ran:
    """One cell's run: `error` is None when it ended well."""

    error: BaseException | None
    result: Any
    shown: list[dict[str, str]]
    """Mime bundles, updates of displays among them, in order."""

    @property
    def text(self) -> str:
        return "\n".join(bundle.get("text/plain", "") for bundle in self.shown)

    @property
    def red_line(self) -> str:
        """What the user sees of the error: it must be one line."""
        assert self.error is not None, f"the cell ended well: {self.text}"
        render = getattr(self.error, "_render_traceback_", None)
        assert render is not None, f"a traceback, not a line: {self.error!r}"
        (line,) = render()
        assert "\n" not in line
        return str(line)


class Shell:
    def __init__(self, ip: Any) -> None:
        self.ip = ip

    def run(self, code: str) -> Ran:
        with capture_output() as captured:
            done = self.ip.run_cell(code)
        shown = [dict(output.data) for output in captured.outputs]
        error = done.error_before_exec or done.error_in_exec
        return Ran(error, done.result, shown)

    def ok(self, code: str) -> Ran:
        ran = self.run(code)
        assert ran.error is None, repr(ran.error)
        return ran

    def completions(self, code: str) -> list[str]:
        """What Tab offers at the end of `code`."""
        with provisionalcompleter():
            return [found.text for found in self.ip.Completer.completions(code, len(code))]


@contextmanager
def shell() -> Iterator[Shell]:
    """A fresh shell; a server that it still runs is stopped."""
    config = Config()
    config.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    ip = InteractiveShell.instance(config=config)
    try:
        yield Shell(ip)
    finally:
        ip.run_cell("%llmserve stop")
        InteractiveShell.clear_instance()


@pytest.fixture
def ip() -> Iterator[Shell]:
    """A shell with the extension loaded and nothing running."""
    with shell() as one:
        one.ok("%load_ext llmserve")
        yield one


@pytest.fixture
def served(ip: Shell) -> Shell:
    """A shell with a fast simulator running."""
    ip.ok("%llmserve start --engine simulator prefill_ms=1 decode_ms=1")
    return ip
