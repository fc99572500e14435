"""Sections of a page of docs/ that a command writes, between marks that name it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def with_section(page: str, name: str, lines: Sequence[str]) -> str:
    """The page with this section's lines in place of what stood there. ValueError without marks."""
    begin, end = f"<!-- {name}: begin", f"<!-- {name}: end -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page has no place for {name}: {begin} … --> and {end}")
    head, _, rest = page.partition(begin)
    words, _, rest = rest.partition("-->")
    _, _, tail = rest.partition(end)
    text = "\n".join(line.rstrip() for line in lines)
    return f"{head}{begin}{words}-->\n{text}\n{end}{tail}"


def write_section(name: str, lines: Sequence[str], page: Path = PAGE) -> None:
    page.write_text(with_section(page.read_text(), name, lines))
