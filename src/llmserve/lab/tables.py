"""Tables of what the lab found, as text and as HTML. The first row is the head."""

from __future__ import annotations

import html
from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def html_table(rows: Sequence[Sequence[str]]) -> str:
    first, *rest = rows
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in first)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rest
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def verdict_html(words: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A verdict, what is to be said with it, and the table behind it."""
    verdict, *more = words
    said = "<br>".join(html.escape(line) for line in more)
    return f"<p><b>{html.escape(verdict)}</b><br>{said}</p>{html_table(rows)}"
