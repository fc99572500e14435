"""TuneResult: which setting won, by how much, what was refuted, and why it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from llmserve.bench.results.intervals import Interval
from llmserve.bench.results.report import Report, miscounted, not_served
from llmserve.core.quantities import duration, number
from llmserve.lab.tables import verdict_html
from llmserve.lab.tuning.limits import UNITS
from llmserve.lab.tuning.race import confirmed, margin
from llmserve.lab.tuning.shape import frontier
from llmserve.plots.figures import Series, lines
from llmserve.plots.live_figure import LiveFigure, sketch

if TYPE_CHECKING:
    import pandas as pd

    from llmserve.plots.figures import Figure

NO_GAIN = "no gain shown"


def in_words(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One setting: what was predicted for it, its live trials, and what refuted it."""

    values: dict[str, Any]
    predicted: float | None = None
    """Of the maximized figure, by the simulator."""
    trials: tuple[float, ...] = ()
    """The maximized figure of each; of a trial that was cut short the most it could have been."""
    ttft_p95_s: float | None = None
    """Mean over the trials that came to their end."""
    refuted: str | None = None

    @property
    def label(self) -> str:
        return in_words(self.values)

    @property
    def mean(self) -> float | None:
        return sum(self.trials) / len(self.trials) if self.trials else None


class TuneResult(msgspec.Struct, frozen=True, kw_only=True):
    """What tuning gives: print it, or show it as a cell's last line.

    `winner` is the setting that was shown to be better than the one in force, None where no gain
    was shown; `gain` how much better, with its interval; `refuted` what lost and why; `stopped` why
    it ended. `frontier()` draws what was tried, `to_frame()` has the numbers.
    """

    workload: str
    slo: str
    figure: str
    present: dict[str, Any]
    """The tuned knobs as they were."""
    best: dict[str, Any] | None = None
    """Who led at the end, whether or not it is shown to be better."""
    points: tuple[Tried, ...]
    pairs: tuple[tuple[float, float], ...] = ()
    """The confirming runs: the leader's figure and the present setting's, on the same arrivals."""
    slo_shares: dict[str, float] = {}
    """Of the leader's confirming runs, or its trials: each figure as a share of its limit."""
    stopped: str
    spent_s: float
    budget_s: float
    calibration_s: float = 0.0
    live_s: float = 0.0
    applied: bool = False
    remarks: tuple[str, ...] = ()
    runs: tuple[Report, ...] = ()
    interrupted: bool = False
    lost: str | None = None

    @property
    def n(self) -> int:
        """Requests that ended well, in all trials."""
        return sum(run.n for run in self.runs)

    @property
    def winner(self) -> dict[str, Any] | None:
        shown = confirmed(self.pairs, last=True)
        return self.best if shown and self.best != self.present else None

    @property
    def gain(self) -> Interval | None:
        """Relative to the present setting, over the confirming pairs; its interval is the one by
        which the winner was judged. None where nothing was confirmed."""
        return margin(self.pairs)

    @property
    def refuted(self) -> dict[str, str]:
        return {each.label: each.refuted for each in self.points if each.refuted is not None}

    @property
    def verdict(self) -> str:
        """In words: the winner and its margin, or that no gain is shown."""
        if self.winner is not None:
            sides = f"{in_words(self.winner)} is better than {in_words(self.present)}"
            return f"{sides}: {self._margin()}"
        if self.best is None or self.best == self.present:
            return f"{NO_GAIN}: nothing that was tried beat {in_words(self.present)}"
        tried = f"{in_words(self.best)} led {in_words(self.present)}"
        if not self.pairs:
            return f"{NO_GAIN}: {tried}, and no confirming run was made"
        return f"{NO_GAIN}: {tried}, and {self._margin()} is not distinct from none"

    def _margin(self) -> str:
        found, unit = self.gain, UNITS[self.figure]
        assert found is not None
        winner = sum(a for a, _ in self.pairs) / len(self.pairs)
        size = f"{number(winner)} {unit}"
        if not sum(present for _, present in self.pairs):
            return f"{size} where it had none, in {len(self.pairs)} confirming pairs"
        span = ""
        if found.low is not None and found.high is not None:
            span = f" ({found.low:+,.1%} to {found.high:+,.1%})"
        return f"{size}, {found.value:+,.1%}{span} in {len(self.pairs)} confirming pairs"

    def warnings(self) -> list[str]:
        """Why the figures may not be taken as they are."""
        found = [*_once(self.runs), *miscounted(self.runs), *self.remarks]
        if self.lost is not None:
            found.append(self.lost)
        elif self.interrupted:
            found.append("interrupted: the knobs are what they were")
        return found

    def to_frame(self) -> pd.DataFrame:
        """A row per setting: its values, predicted figure, trials' mean, how many, and what refuted
        it."""
        import pandas as pd

        rows = [
            each.values | {
                "predicted": each.predicted, self.figure: each.mean, "trials": len(each.trials),
                "ttft_p95_s": each.ttft_p95_s, "refuted": each.refuted,
            }
            for each in self.points
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def frontier(self, title: str = "What was tried") -> Figure:
        """TTFT p95 across, the maximized figure up: what no other setting beats in both."""
        return lines(title, self._drawn(), x="TTFT p95 (ms)", y=UNITS[self.figure])

    def sketch(self) -> LiveFigure:
        """The same while it goes on, each point with its values."""
        notes = [(x, y, label) for x, y, label in self._places()]
        return sketch(
            "Tuning as it goes", {UNITS[self.figure]: self._drawn()}, x="TTFT p95 (ms)", notes=notes
        )

    def _places(self) -> list[tuple[float, float, str]]:
        return [
            (each.ttft_p95_s * 1e3, each.mean, each.label)
            for each in self.points
            if each.ttft_p95_s is not None and each.mean is not None
        ]

    def _drawn(self) -> Series:
        best = frontier((x, y) for x, y, _ in self._places())
        tried = [(x, y) for x, y, _ in self._places() if (x, y) not in best]
        drawn: dict[str, tuple[list[float], list[float]]] = {}
        for name, points in (("frontier", best), ("behind it", tried)):
            if points:
                xs, ys = zip(*points, strict=True)
                drawn[name] = (list(xs), list(ys))
        return drawn

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> TuneResult:
        """What `to_json` wrote; msgspec.ValidationError for anything else."""
        return msgspec.json.decode(text, type=cls)

    def to_markdown(self) -> str:
        head, *rows = self._rows()
        table = (head, ("---", *["---:"] * (len(head) - 2), "---"), *rows)
        return "\n".join([*self._words(), "", *(f"| {' | '.join(row)} |" for row in table)])

    def __str__(self) -> str:
        rows = self._rows()
        wide = [max(len(row[i]) for row in rows) + 2 for i in range(len(rows[0]))]
        table = ["".join(f"{c:<{w}}" for c, w in zip(r, wide, strict=True)).rstrip() for r in rows]
        return "\n".join([*self._words(), "", *table])

    def _repr_pretty_(self, page: Any, cycle: bool) -> None:
        page.text(str(self))

    def _repr_html_(self) -> str:
        return verdict_html(self._words(), self._rows())

    def _words(self) -> list[str]:
        tried = [each for each in self.points if each.trials]
        found = [
            self.verdict,
            f"stopped: {self.stopped}; {duration(self.spent_s)} of {duration(self.budget_s)} spent",
            f"{len(tried)} of {len(self.points)} settings tried live, {len(self.refuted)} refuted, "
            "0 restarts",
            self.workload,
        ]
        found += [
            f"SLO: {name} at {share:.0%} of its limit, {'met' if share <= 1 else 'NOT MET'}"
            for name, share in self.slo_shares.items()
        ]
        if self.applied and self.winner is not None:
            found.append(f"applied: {in_words(self.winner)}")
        elif self.winner is not None:
            found.append("the knobs are what they were; apply=True sets the winner")
        return [*found, *not_served(self.runs), *self.warnings()]

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("setting", "predicted", "trials", "mean", "refuted")]
        for each in self.points:
            rows.append((
                each.label + " (present)" * (each.values == self.present),
                "–" if each.predicted is None else number(each.predicted),
                str(len(each.trials)),
                "–" if each.mean is None else number(each.mean),
                each.refuted or "",
            ))  # fmt: skip
        return rows


def _once(runs: Sequence[Report]) -> list[str]:
    """A kind of doubt in one line: the last one's words, and in how many trials there was one."""
    kinds: dict[str, list[str]] = {}
    for run in runs:
        for words in run.doubts():
            kinds.setdefault(words.partition(":")[0], []).append(words)
    return [f"in {len(said)} of {len(runs)} trials: {said[-1]}" for said in kinds.values()]
