"""An entry of the registry: names, options and what is said where something is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from llmserve.core.clock import MonotonicClock
from llmserve.engines import registry
from llmserve.engines.base import Engine, EngineError
from llmserve.engines.entry import EngineEntry, EngineOption, keywords
from llmserve.entrypoints.cli import engines_page
from llmserve.entrypoints.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "engines.md"


def test_the_table_in_docs_is_current() -> None:
    """If this fails: llmserve engines --write docs/engines.md"""
    assert PAGE.read_text() == engines_page.with_table(PAGE.read_text())


def test_a_page_without_the_marks_is_left_as_it_is() -> None:
    with pytest.raises(ValueError, match="no place for the table"):
        engines_page.with_table("# A page")


def test_the_command_writes_the_table_into_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Mine\n\n{engines_page.BEGIN}\nold\n{engines_page.END}\n\nThe end.\n")
    assert main(["engines", "--write", str(page)]) == 0
    head, table, tail = page.read_text().partition(
        engines_page.table(registry.BUILT_IN.values())
    )
    assert (head, tail) == (
        f"# Mine\n\n{engines_page.BEGIN}\n", f"{engines_page.END}\n\nThe end.\n"
    )  # fmt: skip
    assert all(f"| `{name}` |" in table for name in registry.BUILT_IN)


def test_keywords_tell_defaults_and_the_words_that_may_be() -> None:
    def made(
        *, sink: object, clock: object, size: int = 3, kind: Literal["a", "b"] | None = None,
        fast: bool = False, must: str,
    ) -> None: ...  # fmt: skip

    assert keywords(made) == {
        "size": EngineOption(3),
        "kind": EngineOption(None, ("a", "b")),
        "fast": EngineOption(False, ("True", "False")),
        "must": EngineOption(),
    }


def test_the_torch_engines_options_are_those_that_it_takes() -> None:
    options = registry.find("torch").known_options()
    for name in options:
        with pytest.raises((TypeError, ValueError)) as refused:
            registry.create("torch", sink=print, clock=MonotonicClock(), **{name: object()})
        assert "has no option" not in str(refused.value)
    assert "fused" in options["forward"].choices


def test_what_an_entry_raises_becomes_an_error_that_names_the_engine_and_the_cure() -> None:
    def load() -> type[Engine]:
        raise OSError("libsteam.so is not there")

    entry = EngineEntry(name="steam", summary="", load=load, install="apt install boiler")
    says = "steam engine does not import .OSError: libsteam.so is not there.*: apt install boiler"
    for asked in (entry.loaded, entry.abilities, entry.known_options):
        with pytest.raises(EngineError, match=says):
            asked()
    table = engines_page.table([entry])
    assert "not known, as it does not import here" in table


def test_an_engine_that_is_not_there_is_told_with_those_that_are() -> None:
    for name, hint in (("touch", "did you mean torch"), ("auto", "engines: vllm, torch")):
        with pytest.raises(ValueError, match=f"there is no engine '{name}'; {hint}"):
            registry.create(name, sink=print, clock=MonotonicClock())
