"""Rows of the GPU check: written by the process of a part, read and shown by the command."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PASSED, FAILED, NOT_POSSIBLE = "passed", "failed", "not possible"


@dataclass(frozen=True)
class Row:
    check: str
    outcome: str
    said: str
    """Figures, what went wrong, or why it is not possible."""
    seconds: float | None = None


class NotPossible(Exception):
    """This machine lacks what a check needs; the message says what."""


class Results:
    """The file of one part's rows, a line each, written as they come: a killed part keeps them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def check(self, name: str) -> Iterator[list[str]]:
        """Its row: what is appended to the list is said. An exception ends this check alone."""
        start, said, outcome = time.monotonic(), list[str](), PASSED
        try:
            yield said
        except NotPossible as why:
            said[:], outcome = [str(why)], NOT_POSSIBLE
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            words = str(error).strip().splitlines() or [""]
            said.append(f"{type(error).__name__}: {words[0][:300]}")
            outcome = FAILED
        row = Row(name, outcome, "; ".join(said), round(time.monotonic() - start, 1))
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Whole lines alone: the last one may be cut off. A check that came twice keeps its failure."""
    rows: dict[str, Row] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            row = Row(**json.loads(line))
            if row.check not in rows or row.outcome == FAILED:
                rows[row.check] = row
    return list(rows.values())


def broken(rows: Sequence[Row]) -> bool:
    return any(row.outcome == FAILED for row in rows)


def told_of(row: Row) -> str:
    took = "" if row.seconds is None else f" ({row.seconds:.0f} s)"
    return f"{row.outcome:12}  {row.check}: {row.said}{took}"


def table(device: str, machine: str, rows: Sequence[Row]) -> list[str]:
    """In Markdown. A dry run says above it that it is one."""
    counts = Counter(row.outcome for row in rows)
    head = [f"{machine}.", ""]
    if device == "cpu":
        head = ["**A dry run on a CPU: none of this ran on a GPU.**", "", *head]
    sums = ", ".join(f"{counts[one]} {one}" for one in (PASSED, FAILED, NOT_POSSIBLE))
    lines = [*head, "| check | outcome | what it found | seconds |", "|---|---|---|---|"]
    for row in rows:
        took = "" if row.seconds is None else f"{row.seconds:.1f}"
        said = row.said.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {row.check} | {row.outcome} | {said} | {took} |")
    return [*lines, "", f"{sums}."]
