"""`llmserve engines`: the table of engines, which docs/engines.md shows too; one's options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmserve.engines import registry
from llmserve.engines.base import EngineError
from llmserve.engines.entry import EngineEntry

BEGIN = "<!-- engines: begin, written by `llmserve engines --write docs/engines.md` -->"
END = "<!-- engines: end -->"


def add_command(commands: Any) -> None:
    """To argparse's subparsers of the command line."""
    parser = commands.add_parser("engines", help="the engines there are; of one, its options")
    parser.set_defaults(run=_run)
    parser.add_argument("name", nargs="?", help="list this engine's options")
    parser.add_argument("--write", metavar="FILE", help="write llmserve's own into this page")


def table(entries: Iterable[EngineEntry]) -> str:
    """One row per engine, as Markdown."""
    head = "| engine | what it runs | can, beside generating | to install it |\n|---|---|---|---|\n"
    return head + "".join(
        f"| `{one.name}` | {_cell(one.summary)} | {_abilities(one)} | {_cell(one.install)} |\n"
        for one in entries
    )


def with_table(page: str) -> str:
    """The page with the table of llmserve's own engines between the marks; ValueError without."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no place for the table: {BEGIN} … {END}")
    return f"{head}{BEGIN}\n{table(registry.BUILT_IN.values())}{END}{tail}"


def option_lines(entry: EngineEntry) -> str:
    """One line per option: its name, its default, and the words it takes."""
    lines = []
    for name, option in entry.known_options().items():
        words = f"  ({' | '.join(option.choices)})" if option.choices else ""
        default = "" if option.default is None else f"={option.default}"
        lines.append(f"{name}{default}{words}\n")
    return "".join(lines)


def _run(args: argparse.Namespace) -> int:
    if args.write is not None:
        page = Path(args.write)
        page.write_text(with_table(page.read_text()))
    elif args.name is not None:
        sys.stdout.write(option_lines(registry.find(args.name)))
    else:
        sys.stdout.write(table(registry.entries()))
    return 0


def _abilities(entry: EngineEntry) -> str:
    try:
        return ", ".join(f"`{word}`" for word in entry.abilities()) or "nothing more"
    except EngineError:
        return "not known, as it does not import here"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
