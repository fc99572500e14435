"""What a run measured: a table in a terminal and in a notebook, a frame, JSON."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import msgspec

from llmserve.observe.samples import Summary

if TYPE_CHECKING:
    import pandas as pd

_FIGURES = ("ttft", "itl", "tpot", "e2e", "queue")
_COLUMNS = ("mean", "p50", "p95", "p99")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies in seconds. In an open loop they count from the *scheduled* arrival, so that a
    server which stalls is charged for all who would have come meanwhile."""

    workload: str
    sent: int
    n: int
    """Requests that ended well: by stop or by length."""
    errors: dict[str, int]
    """Those that did not, by reason."""
    unfinished: int
    """Still under way when the run was interrupted."""
    duration_s: float
    """First scheduled arrival to the last end."""
    ttft: Summary
    itl: Summary
    tpot: Summary
    e2e: Summary
    queue: Summary
    prompt_tokens: int
    """Of the requests whose first token came."""
    generated_tokens: int
    batch_fill: float | None = None
    seq_fill: float | None = None
    """As in Snapshot, over the engine's steps during the run; None where no step was told."""
    max_lag_s: float | None = None
    """The latest that the driver itself sent a request after its scheduled arrival."""
    interrupted: bool = False
    capped: bool = False
    """There were more samples than are kept: percentiles are of the newest."""

    @property
    def prompt_tokens_per_s(self) -> float:
        return self.prompt_tokens / self.duration_s if self.duration_s else 0.0

    @property
    def generated_tokens_per_s(self) -> float:
        return self.generated_tokens / self.duration_s if self.duration_s else 0.0

    @property
    def requests_per_s(self) -> float:
        return self.n / self.duration_s if self.duration_s else 0.0

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Report:
        return msgspec.json.decode(text, type=cls)

    def to_frame(self) -> pd.DataFrame:
        """A row per figure, seconds; the whole report's other fields are in `frame.attrs`."""
        import pandas as pd

        rows = {name: msgspec.structs.asdict(getattr(self, name)) for name in _FIGURES}
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=["n", *_COLUMNS])
        everything = msgspec.to_builtins(self)
        frame.attrs = {k: v for k, v in everything.items() if k not in _FIGURES}
        return frame

    def __str__(self) -> str:
        lines = [self._headline(), *self._remarks(), ""]
        lines.append(f"{'ms':<6}{'n':>8}" + "".join(f"{name:>11}" for name in _COLUMNS))
        for name, n, cells in self._table():
            lines.append(f"{name:<6}{n:>8}" + "".join(f"{cell:>11}" for cell in cells))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("ms", "n", *_COLUMNS))
        body = "".join(
            f"<tr><th>{name}</th><td>{n}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>"
            for name, n, cells in self._table()
        )
        words = "<br>".join(html.escape(line) for line in (self._headline(), *self._remarks()))
        return f"<p>{words}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _table(self) -> list[tuple[str, int, list[str]]]:
        rows = []
        for name in _FIGURES:
            summary: Summary = getattr(self, name)
            values = [getattr(summary, column) for column in _COLUMNS]
            cells = ["–" if value is None else f"{value * 1e3:,.2f}" for value in values]
            rows.append((name if name == "queue" else name.upper(), summary.n, cells))
        return rows

    def _headline(self) -> str:
        return (
            f"{self.n} of {self.sent} requests in {self.duration_s:.2f} s: "
            f"{self.requests_per_s:,.2f} requests/s, "
            f"{self.generated_tokens_per_s:,.1f} generated and "
            f"{self.prompt_tokens_per_s:,.1f} prompt tokens/s"
        )

    def _remarks(self) -> list[str]:
        remarks = [self.workload]
        if self.errors:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.errors.items()))
            remarks.append(f"not served: {kinds}")
        if self.interrupted:
            remarks.append(f"interrupted with {self.unfinished} under way")
        if self.seq_fill is not None and self.batch_fill is not None:
            remarks.append(
                f"batches {self.seq_fill:.0%} full in sequences, {self.batch_fill:.0%} in tokens"
            )
        if self.capped:
            remarks.append("more samples than are kept: percentiles are of the newest")
        return remarks
