"""docs/clients.md says which versions of clients are tested: those that are pinned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "tests" / "clients"


def pinned(name: str) -> dict[str, str]:
    lines = (CLIENTS / name).read_text()
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", lines, re.MULTILINE))


def test_the_table_has_the_versions_that_are_pinned() -> None:
    pins = pinned("requirements.txt") | pinned("load-requirements.txt")
    page = (ROOT / "docs" / "clients.md").read_text()
    rows = dict(re.findall(r"^\| ([\w-]+) \| (\d[\d.]*) \|", page, re.MULTILINE))
    assert len(rows) == 12
    assert rows == {name: pins[name] for name in rows}


@pytest.mark.parametrize("name", ["requirements", "load-requirements"])
def test_every_client_is_pinned_with_all_it_needs(name: str) -> None:
    """The lists are installed as they are, without a look at what else might be wanted."""
    wanted = re.findall(r"^([\w.-]+)", (CLIENTS / f"{name}.in").read_text(), re.MULTILINE)
    pins = pinned(f"{name}.txt")
    assert {one.lower().replace("_", "-") for one in wanted} <= pins.keys()
    assert "torch" not in pins, "it is .venv's"
