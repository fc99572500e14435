"""The sections of docs/benchmarks.md that commands write."""

from __future__ import annotations

import pytest

from benchmarks.page import PAGE, with_section

TEXT = "above\n<!-- peers: begin, by a command -->\nold\n<!-- peers: end -->\nbelow\n"


def test_a_section_is_replaced_and_nothing_else() -> None:
    page = with_section(TEXT, "peers", ["new ", "", "| row |"])
    assert page == (
        "above\n<!-- peers: begin, by a command -->\nnew\n\n| row |\n<!-- peers: end -->\nbelow\n"
    )
    assert with_section(page, "peers", ["old"]) == TEXT


def test_a_page_without_its_place_is_not_written_to() -> None:
    with pytest.raises(ValueError, match="no place for other"):
        with_section(TEXT, "other", ["x"])


def test_the_page_has_the_places_that_the_commands_write_to() -> None:
    page = PAGE.read_text()
    for name in ("peers", "driver-check"):
        assert with_section(page, name, ["x"]) != page
