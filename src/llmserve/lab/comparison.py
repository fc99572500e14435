"""Comparison: two sides on the same arrivals, what differs, and whether the difference is shown.

The intervals of all judged figures hold together (Bonferroni): two equal sides seem different in
at most 5 of 100 comparisons, however many figures are looked at.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from llmserve.bench.results.intervals import Interval, interval
from llmserve.bench.results.report import (
    UNEVEN,
    Report,
    miscounted,
    not_served,
    share_served,
    unseen,
)
from llmserve.core.quantities import duration, number
from llmserve.lab.tables import verdict_html
from llmserve.plots.figures import in_unit, lines

if TYPE_CHECKING:
    import pandas as pd

    from llmserve.plots.figures import Figure

CONFIDENCE = 0.95
_MOST = 99.0
_ROUNDING = 1e-9
"""Times are differences of sums: what is nearer than this part of it is equal."""
NO_DIFFERENCE = "no difference shown"

JUDGED = {
    "generated_tokens_per_s": "generated tokens/s",
    "ttft_mean": "mean TTFT",
    "ttft_p95": "TTFT p95",
    "itl_mean": "mean ITL",
    "e2e_mean": "mean E2E",
}
GOODPUT = {"goodput_per_s": "goodput"}
"""Judged too where there is an SLO."""
HIGHER_IS_BETTER = ("generated_tokens_per_s", "goodput_per_s", "requests_per_s")


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """B against A in one figure, pair by pair; means in seconds and counts.

    Pairs are compared by their ratio: what makes the machine slow for both of a pair cancels.
    """

    figure: str
    a: float
    b: float
    by: Interval
    """Of ln(B/A); of B - A where `ratio` is False, for a run measured 0."""
    ratio: bool = True

    @property
    def shown(self) -> bool:
        return self.by.excludes_zero

    @property
    def better(self) -> str | None:
        """"A" or "B"; None where no difference is shown."""
        if not self.shown:
            return None
        return "B" if (self.by.value > 0) == (self.figure in HIGHER_IS_BETTER) else "A"

    @property
    def change(self) -> float | None:
        """Of B, relative to A; None where A is 0."""
        return self._relative(self.by.value)

    @property
    def low(self) -> float | None:
        return self._relative(self.by.low)

    @property
    def high(self) -> float | None:
        return self._relative(self.by.high)

    def _relative(self, part: float | None) -> float | None:
        if part is None or (not self.ratio and not self.a):
            return None
        return math.expm1(min(part, 700.0)) if self.ratio else part / abs(self.a)

    def __str__(self) -> str:
        name = (JUDGED | GOODPUT).get(self.figure, self.figure)
        if self.change is None or self.low is None or self.high is None:
            more = self.b - self.a
            size = number(more) if self.figure in HIGHER_IS_BETTER else duration(more)
            words = f"B {'+' * (more > 0)}{size}" if self.shown else NO_DIFFERENCE
            return f"{name}: {words}"
        span = f"{self.low:+,.1%} to {_percent(self.high)}"
        if not self.shown:
            return f"{name}: {NO_DIFFERENCE} ({span})"
        return f"{name}: B {self.change:+,.1%} ({span})"


def apart(a: float, b: float) -> float:
    """b - a, and 0 where that is of their rounding alone."""
    return 0.0 if math.isclose(a, b, rel_tol=_ROUNDING) else b - a


def _log_ratio(a: float, b: float) -> float:
    return math.log(b / a) if apart(a, b) else 0.0


def _percent(share: float) -> str:
    """Two pairs may leave an end of the interval anywhere."""
    return f"{share:+,.1%}" if share < _MOST else f"more than {_MOST:+,.0%}"


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison gives: print it, or show it as a cell's last line.

    `verdict` is its sentence, `differences()` the judged figures of B against A, each with its
    interval; `latencies("ttft")` draws both sides, `to_frame()` has the numbers (seconds).
    """

    a: str
    b: str
    workload: str
    runs_a: tuple[Report, ...]
    runs_b: tuple[Report, ...]
    """Pair by pair: run k of both met the same arrivals."""
    planned: int
    order: str = ""
    """Which side went when: ABBAABBA."""
    interrupted: bool = False
    lost: str | None = None
    """Why it could not go on, where a server stopped answering."""

    @property
    def n(self) -> int:
        """Requests that ended well, of the side that served fewer."""
        return min(sum(run.n for run in runs) for runs in (self.runs_a, self.runs_b))

    @property
    def pairs(self) -> int:
        return len(self.runs_a)

    def judged(self) -> dict[str, str]:
        limited = any(run.met is not None for run in (*self.runs_a, *self.runs_b))
        return JUDGED | GOODPUT if limited else JUDGED

    def difference(self, figure: str) -> Difference | None:
        """None where a run did not measure it."""
        found = [
            (a, b)
            for one, other in zip(self.runs_a, self.runs_b, strict=True)
            if (a := one.figures()[figure]) is not None
            and (b := other.figures()[figure]) is not None
        ]
        each = 1 - (1 - CONFIDENCE) / len(self.judged())
        ratio = all(a > 0 and b > 0 for a, b in found)
        by = interval([_log_ratio(a, b) if ratio else b - a for a, b in found], each)
        if by is None:
            return None
        mean_a, mean_b = (sum(side) / len(found) for side in zip(*found, strict=True))
        return Difference(figure=figure, a=mean_a, b=mean_b, by=by, ratio=ratio)

    def differences(self) -> list[Difference]:
        return [found for name in self.judged() if (found := self.difference(name)) is not None]

    def warnings(self) -> list[str]:
        """What forbids a verdict, and what a reader must know besides."""
        found = []
        for label, runs in (("A", self.runs_a), ("B", self.runs_b)):
            said = {warning for run in runs for warning in run.doubts()}
            said_once = (*sorted(said), *miscounted(runs), *not_served(runs))
            found += [f"{label}: {warning}" for warning in said_once]
        if self.lost is not None:
            found.append(f"{self.pairs} of {self.planned} pairs came to their end: {self.lost}")
        elif self.interrupted:
            found.append(f"interrupted: {self.pairs} of {self.planned} pairs came to their end")
        return found

    @property
    def spoiled(self) -> bool:
        return any(run.spoiled for run in (*self.runs_a, *self.runs_b))

    @property
    def verdict(self) -> str:
        """In words. It names a better side only where every shown difference agrees."""
        if self.pairs < 2:
            return "no verdict: fewer than two pairs came to their end"
        if self.spoiled:
            return "no verdict: the runs are spoiled (see the warnings)"
        for label, runs in (("A", self.runs_a), ("B", self.runs_b)):
            if empty := sum(run.empty for run in runs):
                return f"no verdict: {label} served nothing in {empty} of {self.pairs} runs"
        shown = [found for found in self.differences() if found.shown]
        if not shown:
            return f"{NO_DIFFERENCE} between A ({self.a}) and B ({self.b}) in {self.pairs} pairs"
        words = "; ".join(str(found) for found in shown)
        a, b = share_served(self.runs_a), share_served(self.runs_b)
        if abs(a - b) > UNEVEN:
            return f"not ranked, for A served {a:.0%} of its requests and B {b:.0%}: {words}"
        winners = {found.better for found in shown}
        if winners == {"B"}:
            return f"B ({self.b}) is better than A ({self.a}): {words}"
        if winners == {"A"}:
            return f"A ({self.a}) is better than B ({self.b}): {words}"
        return f"A ({self.a}) and B ({self.b}) differ, and neither is better in all: {words}"

    def to_frame(self) -> pd.DataFrame:
        """A row per judged figure: both means, B's change relative to A with its ends, whether a
        difference is shown."""
        import pandas as pd

        rows = {
            d.figure: [d.a, d.b, d.change, d.low, d.high, d.shown, d.better]
            for d in self.differences()
        }
        columns = ["A", "B", "change", "low", "high", "shown", "better"]
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
        frame.attrs = {"a": self.a, "b": self.b, "workload": self.workload, "pairs": self.pairs}
        return frame

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        return msgspec.json.decode(text, type=cls)

    def to_markdown(self) -> str:
        rows = [f"| {' | '.join(row)} |" for row in self._rows()]
        return "\n".join([*self._words(), "", rows[0], "| --- | ---: | ---: | ---: |", *rows[1:]])

    def latencies(self, figure: str = "ttft") -> Figure:
        """Both sides' share of requests by their latency (ttft, itl or e2e)."""
        curves = {}
        for name, runs in ((f"A: {self.a}", self.runs_a), (f"B: {self.b}", self.runs_b)):
            kept = [values for run in runs if (values := run.quantiles.get(figure))]
            if kept:
                mean = [sum(column) / len(kept) for column in zip(*kept, strict=True)]
                curves[name] = (mean, [float(i) for i in range(101)])
        title = f"{figure.upper()} of both sides"
        drawn, unit = in_unit(curves, "x")
        return lines(title, drawn, x=unit, y="% of requests")

    def __str__(self) -> str:
        rows = [
            f"{row[0]:<20}{row[1]:>14}{row[2]:>14}   {row[3]}" for row in self._rows()
        ]
        return "\n".join([*self._words(), "", *rows])

    def _repr_pretty_(self, page: Any, cycle: bool) -> None:
        page.text(str(self))

    def _repr_html_(self) -> str:
        return verdict_html(self._words(), self._rows())

    def _words(self) -> list[str]:
        how = f"{self.pairs} pairs on identical arrivals, in the order {self.order}"
        held = f"{how}; the intervals hold together at {CONFIDENCE:.0%}"
        not_seen = [
            f"{label}: {line}"
            for label, runs in (("A", self.runs_a), ("B", self.runs_b))
            for line in unseen(runs)
        ]
        return [self.verdict, held, self.workload, *not_seen, *self.warnings()]

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("", "A", "B", "B against A")]
        for found in self.differences():
            time = found.figure not in HIGHER_IS_BETTER
            cells = (duration(v) if time else f"{v:,.2f}" for v in (found.a, found.b))
            relative = str(found).partition(": ")[2].removeprefix("B ")
            rows.append((self.judged()[found.figure], *cells, relative))
        return rows
