"""The tables of fields as docs/http.md prints them.

`python -m llmserve.entrypoints.http.fields_page docs/http.md` writes them there anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from llmserve.entrypoints.http.known_fields import IGNORED, REFUSED, Neutral
from llmserve.entrypoints.http.nested_fields import INSIDE
from llmserve.entrypoints.http.route_fields import BODIES, of_route

_MARKS = "<!-- the tables of fields -->", "<!-- their end -->"


def fields_page() -> str:
    """The sizes of the tables, and the tables."""
    read = {path: of_route(path).read for path in BODIES}
    names = set().union(*read.values())
    ignored = {name for group in IGNORED.values() for name in group} - names
    refused = {name for group in REFUSED.values() for name in group} - names
    inside = sum(len(one.read) + len(one.ignored) + len(one.refused) for one in INSIDE.values())
    sizes = (
        f"The table has {len(names | ignored | refused)} names: {len(names)} are read on some "
        f"route, {len(ignored)} are ignored, {len(refused)} refused. Of objects within a body it "
        f"has {inside} more."
    )
    return "\n".join([
        sizes, "", "| read by | fields |", "|---|---|", *_read(read, names), "",
        "Ignored, for nothing of the reply depends on them:", "", "| of | fields |", "|---|---|",
        *_ignored(names), "",
        "Refused, but for null and the values that are shown, which ask for nothing:", "",
        "| of | fields |", "|---|---|", *_refused(names), "",
        "Within objects:", "", "| in | read | ignored | refused |", "|---|---|---|---|", *_inside(),
    ]) + "\n"  # fmt: skip


def renewed(text: str) -> str:
    """The page with the tables of now between its two marks."""
    before, _, rest = text.partition(_MARKS[0])
    after = rest.partition(_MARKS[1])[2]
    return f"{before}{_MARKS[0]}\n{fields_page()}{_MARKS[1]}{after}"


def _read(read: Mapping[str, frozenset[str]], names: Iterable[str]) -> list[str]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in sorted(names):
        groups.setdefault(tuple(path for path in read if name in read[path]), []).append(name)
    return [_row(", ".join(_code(paths)), _code(group)) for paths, group in groups.items()]


def _ignored(read: set[str]) -> list[str]:
    rows = []
    for owner, group in IGNORED.items():
        reasons: dict[str, list[str]] = {}
        for name, why in group.items():
            if name not in read:
                reasons.setdefault(why, []).append(name)
        said = [f"{', '.join(_code(names))} ({why})" for why, names in reasons.items()]
        rows += [_row(owner, said)] if said else []
    return rows


def _refused(read: set[str]) -> list[str]:
    rows = []
    for owner, group in REFUSED.items():
        shown = [_with(name, neutral) for name, neutral in group.items() if name not in read]
        rows += [_row(owner, shown)] if shown else []
    return rows


def _inside() -> list[str]:
    rows = []
    for path, inside in INSIDE.items():
        found = _struct_reads(path)
        read = found or inside.read
        cells = (
            _code(sorted(read)), _code(name for name in sorted(inside.ignored) if name not in read),
            [_with(name, inside.refused[name]) for name in sorted(inside.refused)
             if name not in read],
        )  # fmt: skip
        rows.append(f"| `{path}` | {' | '.join(', '.join(cell) for cell in cells)} |")
    return rows


def _struct_reads(path: str) -> frozenset[str]:
    """What the structs of all routes read at a path; empty where none reads objects there."""
    found: frozenset[str] = frozenset()
    for route in BODIES:
        fields = of_route(route)
        for part in path.split("."):
            if (inner := fields.inside.get(part)) is None:
                break
            fields = inner
        else:
            found |= fields.read
    return found


def _with(name: str, neutral: Neutral) -> str:
    values = " or ".join(msgspec.json.encode(one).decode() for one in neutral)
    return f"`{name}: {values}`" if neutral else f"`{name}`"


def _code(names: Iterable[str]) -> list[str]:
    return [f"`{name}`" for name in names]


def _row(head: str, cells: Iterable[str]) -> str:
    return f"| {head} | {', '.join(cells)} |"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(renewed(target.read_text()))
