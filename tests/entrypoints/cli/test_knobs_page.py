from __future__ import annotations

from pathlib import Path

from llmserve.core.knobs import SPECS
from llmserve.entrypoints.cli.knobs_page import knobs_page

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_in_docs_is_current() -> None:
    """If this fails: llmserve knobs > docs/knobs.md"""
    assert (DOCS / "knobs.md").read_text() == knobs_page()


def test_every_knob_stands_on_the_page_once() -> None:
    for name, spec in SPECS.items():
        assert knobs_page().count(f"| `{name}` |") == 1
        assert spec.help in knobs_page()
