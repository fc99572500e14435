"""The requests as a cell shows them: a DataFrame of seconds that reads well when displayed."""

from __future__ import annotations

import datetime
import html
from typing import Any, ClassVar

import pandas as pd

from llmserve.core.quantities import NONE, duration

_NUMBERS = {"prompt (tokens)", "reply (tokens)", "waited", "TTFT", "E2E", "preempted"}


class RequestsView(pd.DataFrame):
    """`RequestLog.to_frame`, the oldest first; what is cut from it is a plain DataFrame again."""

    shown_now: float
    shown_clock: datetime.datetime | None
    _metadata: ClassVar[list[str]] = ["shown_now", "shown_clock"]

    @classmethod
    def of(
        cls, frame: pd.DataFrame, now: float, clock: datetime.datetime | None = None
    ) -> RequestsView:
        """now: of the session's clock, which arrivals count by. clock: the time of day then; with
        it arrivals are shown by it, else as so long ago."""
        view = cls(frame.sort_values("arrival", kind="stable"))
        view.shown_now, view.shown_clock = now, clock
        return view

    @property
    def _constructor(self) -> Any:
        return pd.DataFrame

    def __repr__(self) -> str:
        head, rows = self._shown()
        table = [head, *rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        lines = []
        for row in table:
            cells = (
                f"{cell:>{width}}" if name in _NUMBERS else f"{cell:<{width}}"
                for name, cell, width in zip(head, row, widths, strict=True)
            )
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head, rows = self._shown()
        titles = "".join(f"<th {_style(name)}>{html.escape(name)}</th>" for name in head)
        body = "".join(
            "<tr>"
            + "".join(
                f"<td {_style(name)}>{html.escape(cell)}</td>"
                for name, cell in zip(head, row, strict=True)
            )
            + "</tr>"
            for row in rows
        )
        return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"

    def _shown(self) -> tuple[list[str], list[list[str]]]:
        """Titles with their units, and a row of texts per request; columns that say nothing here
        are left out."""
        rows = [self._cells(str(name), row) for name, row in self.iterrows()]
        several = {
            "tenant": self["tenant"].nunique() > 1,
            "class": self["priority"].nunique() > 1,
            "preempted": bool(self["preemptions"].any()),
        }
        titles = ["request", "came", "tenant", "class", "state", "prompt (tokens)",
                  "reply (tokens)", "waited", "TTFT", "E2E", "preempted"]  # fmt: skip
        kept = [title for title in titles if several.get(title, True)]
        return kept, [[row[title] for title in kept] for row in rows]

    def _cells(self, name: str, row: pd.Series) -> dict[str, str]:
        state, reason = row["state"], row["finish_reason"]
        return {
            "request": name,
            "came": self._came(float(row["arrival"])),
            "tenant": str(row["tenant"]),
            "class": str(row["priority"]),
            "state": f"{state}: {reason}" if isinstance(reason, str) else str(state),
            "prompt (tokens)": _count(row["prompt_tokens"]),
            "reply (tokens)": _count(row["completion_tokens"]),
            "waited": duration(_seconds(row["queue_s"])),
            "TTFT": duration(_seconds(row["ttft_s"])),
            "E2E": duration(_seconds(row["e2e_s"])),
            "preempted": _count(row["preemptions"]),
        }

    def _came(self, arrival: float) -> str:
        ago = max(0.0, self.shown_now - arrival)
        if self.shown_clock is None:
            return f"{duration(ago)} ago"
        return (self.shown_clock - datetime.timedelta(seconds=ago)).strftime("%H:%M:%S")


def _style(name: str) -> str:
    side = "right" if name in _NUMBERS else "left"
    return f'style="text-align:{side};white-space:nowrap"'


def _seconds(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _count(value: Any) -> str:
    return NONE if pd.isna(value) else f"{int(value):,}"
