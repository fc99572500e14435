"""Sweep: what was measured at each point of a grid, and which of them is best, if any is."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from llmserve.bench.results.intervals import Interval, interval
from llmserve.bench.results.report import (
    UNEVEN,
    Report,
    is_time,
    miscounted,
    not_served,
    share_served,
    unseen,
)
from llmserve.core.quantities import Unit, spread, unit_of
from llmserve.lab.comparison import CONFIDENCE, HIGHER_IS_BETTER, apart
from llmserve.lab.tables import html_table
from llmserve.plots.figures import Series, heat, in_unit, lines
from llmserve.plots.live_figure import LiveFigure, sketch

if TYPE_CHECKING:
    import pandas as pd

    from llmserve.plots.figures import Figure

SHOWN = (
    "generated_tokens_per_s", "ttft_mean", "ttft_p95", "itl_mean", "e2e_mean", "goodput_per_s",
)


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One combination of values."""

    values: dict[str, Any]
    runs: tuple[Report, ...] = ()
    """Runs of one round met the same arrivals, where only knobs differ."""
    rounds: tuple[int, ...] = ()
    """Each run's."""
    skipped: str | None = None
    """Why this server could not try it."""
    empty: tuple[Report, ...] = ()
    """Runs in which nothing was served: they are named, and in no figure."""

    @property
    def label(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.values.items())

    def series(self, figure: str) -> list[float]:
        return [value for run in self.runs if (value := run.figures()[figure]) is not None]

    def by_round(self, figure: str) -> dict[int, float]:
        of_runs = zip(self.rounds, (run.figures()[figure] for run in self.runs), strict=True)
        return {number: value for number, value in of_runs if value is not None}

    def mean(self, figure: str) -> float | None:
        found = interval(self.series(figure))
        return None if found is None else found.value


class Best(msgspec.Struct, frozen=True, kw_only=True):
    """The points that no other one was shown to beat; `str()` says it in words."""

    figure: str
    leader: Point
    equals: tuple[Point, ...]
    """Points that cannot be distinguished from the leader."""
    unfit: str | None = None
    """Why no two points can be distinguished at all."""

    @property
    def single(self) -> Point | None:
        """The best point, where it is shown to be better than every other."""
        return None if self.equals or self.unfit else self.leader

    def __str__(self) -> str:
        if self.unfit:
            return f"best {self.figure}: not ranked, {self.unfit}"
        if not self.equals:
            return f"best {self.figure}: {self.leader.label}"
        others = ", ".join(point.label for point in self.equals)
        return (
            f"best {self.figure}: not ranked, {self.leader.label} is not distinct from {others}"
        )


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep gives: print it, or show it as a cell's last line.

    `plot("ttft_p95")` draws a figure over the axes, `curve()` latency over throughput,
    `best("ttft_p95")` names the point that leads every other where one is shown to, and
    `to_frame()` has all figures. Figures are `generated_tokens_per_s`, `goodput_per_s`, … and
    `ttft`, `itl`, `tpot`, `e2e`, `queue` with `_mean`, `_p50`, `_p95` …; seconds.
    """

    workload: str
    points: tuple[Point, ...]
    rounds: int
    interrupted: bool = False
    lost: str | None = None
    """Why it could not go on, where the server stopped answering."""

    @property
    def n(self) -> int:
        """Requests that ended well."""
        return sum(run.n for point in self.points for run in point.runs)

    def measured(self) -> list[Point]:
        """Points with at least one run in which something was served."""
        return [point for point in self.points if point.runs]

    def best(self, figure: str = "generated_tokens_per_s") -> Best:
        """Ranks only what does not overlap: by differences in the rounds that all points have,
        whose intervals against the leader hold together."""
        points = [point for point in self.measured() if point.series(figure)]
        if not points:
            raise ValueError(f"no point of the sweep measured {figure}")
        series = _in_common([point.by_round(figure) for point in points])
        sign = 1 if figure in HIGHER_IS_BETTER else -1
        first = max(range(len(points)), key=lambda number: sign * sum(series[number]))
        each = 1 - (1 - CONFIDENCE) / max(1, len(points) - 1)
        equals = []
        for number, point in enumerate(points):
            found = interval(list(map(apart, series[number], series[first])), each)
            if number != first and (found is None or not found.excludes_zero):
                equals.append(point)
        leader, few = points[first], len(points) > 1 and len(series[first]) < 2
        unfit = "one round distinguishes nothing" if few else _unfit(points, figure)
        return Best(figure=figure, leader=leader, equals=tuple(equals), unfit=unfit)

    def to_frame(self) -> pd.DataFrame:
        """A row per point: its values, each figure's mean over rounds with both ends of its
        interval, the runs, and why it was skipped. Seconds and counts."""
        import pandas as pd

        rows = []
        for point in self.points:
            row: dict[str, Any] = dict(point.values)
            for name in point.runs[0].figures() if point.runs else ():
                found = interval(point.series(name))
                if found is not None:
                    row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
            row |= {"runs": len(point.runs), "skipped": point.skipped}
            rows.append(row)
        frame = pd.DataFrame(rows)
        frame.attrs = {"workload": self.workload, "warnings": self.warnings()}
        return frame

    def warnings(self) -> list[str]:
        """Why points may not be taken as they are, and which were not tried."""
        found = []
        for point in self.points:
            said = {warning for run in point.runs for warning in run.doubts()}
            runs = [*point.runs, *point.empty]
            said |= {*miscounted(runs), *not_served(runs)}
            if point.empty:
                said.add(f"nothing was served in {len(point.empty)} runs, which are left out")
            found += [f"{point.label}: {warning}" for warning in sorted(said)]
            if point.skipped:
                found.append(f"{point.label}: not tried: {point.skipped}")
        if self.interrupted or self.lost is not None:
            why = self.lost or "interrupted"
            found.append(f"{why}: with a path, the same call measures what is missing")
        return found

    def curve(
        self, title: str = "Throughput and latency", latency: str = "ttft_p95"
    ) -> Figure:
        """Throughput across, latency up, a point of the sweep each; a line per value of the
        first axis where there are two."""
        drawn: Series = {
            name: ([x for x, _, _ in places], [y for _, y, _ in places])
            for name, places in self._places(latency).items()
        }
        drawn, unit = in_unit(drawn, "y")
        return lines(title, drawn, x="tokens/s", y=f"{latency} ({unit})")

    def sketch(self) -> LiveFigure:
        """The curve so far, each point with its values, for a sweep under way."""
        found = self._places("ttft_p95")
        drawn: Series = {
            name: ([x for x, _, _ in p], [y for _, y, _ in p]) for name, p in found.items()
        }
        drawn, unit = in_unit(drawn, "y")
        ys = [y for _, ys in drawn.values() for y in ys]
        places = [place for places in found.values() for place in places]
        notes = [(x, y, words) for (x, _, words), y in zip(places, ys, strict=True)]
        return sketch(
            "The sweep as it goes", {f"TTFT p95 ({unit}), mean of the rounds": drawn},
            x="generated tokens/s", notes=notes,
        )  # fmt: skip

    def _places(self, latency: str) -> dict[str, list[tuple[float, float, str]]]:
        """By line of the curve: tokens/s, seconds, and what the point is, in words."""
        series: dict[str, list[tuple[float, float, str]]] = {}
        for point in self.measured():
            name, *others = (f"{axis}={value}" for axis, value in point.values.items())
            x, y = point.mean("generated_tokens_per_s"), point.mean(latency)
            if x is not None and y is not None:
                line = name if others else next(iter(point.values))
                series.setdefault(line, []).append((x, y, " ".join(others) or name))
        return series

    def plot(self, figure: str = "generated_tokens_per_s") -> Figure:
        """One axis: the figure with both ends of its interval. Two: a table with colours."""
        axes = list(self.points[0].values) if self.points else []
        if len(axes) == 2:
            return self._heat(figure, *axes)
        return self._lines(figure, axes)

    def _heat(self, figure: str, down: str, across: str) -> Figure:
        import pandas as pd

        means = [mean for point in self.measured() if (mean := point.mean(figure)) is not None]
        unit = _unit(figure, max(means, default=0.0))
        cells: dict[str, dict[str, float]] = {}
        for point in self.measured():
            if (mean := point.mean(figure)) is not None:
                row = str(point.values[down])
                cells.setdefault(row, {})[str(point.values[across])] = mean / unit.seconds
        square = pd.DataFrame.from_dict(cells, orient="index").rename_axis(down, axis=0)
        square = square.rename_axis(across, axis=1)
        words = f" ({unit.name})" if unit.name else ""
        return heat(f"{figure}{words}", square, digits=1 if unit.name else 0)

    def _lines(self, figure: str, axes: list[str]) -> Figure:
        points = self.measured()
        numbers = all(isinstance(p.values[axes[0]], int | float) for p in points)
        xs = [float(p.values[axes[0]]) if numbers else float(i) for i, p in enumerate(points)]
        found = [interval(point.series(figure)) for point in points]
        drawn: dict[str, tuple[list[float], list[float]]] = {}
        for name, part in (("mean", "value"), ("95 % low", "low"), ("95 % high", "high")):
            places = [
                (x, float(value))
                for x, each in zip(xs, found, strict=True)
                if each is not None and (value := getattr(each, part)) is not None
            ]
            if places:
                drawn[name] = ([x for x, _ in places], [y for _, y in places])
        if not is_time(figure):
            return lines(figure, drawn, x=self._axes_words(axes), y=figure)
        scaled, unit = in_unit(drawn, "y")
        return lines(f"{figure} ({unit})", scaled, x=self._axes_words(axes), y=figure)

    def _axes_words(self, axes: list[str]) -> str:
        return ", ".join(axes)

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Sweep:
        return msgspec.json.decode(text, type=cls)

    def to_markdown(self) -> str:
        head, *rows = self._rows()
        table = (head, ["---:"] * len(head), *rows)
        return "\n".join([*self._words(), "", *(f"| {' | '.join(row)} |" for row in table)])

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[i]) for row in rows) + 2 for i in range(len(rows[0]))]
        table = ["".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([*self._words(), "", *table])

    def _repr_pretty_(self, page: Any, cycle: bool) -> None:
        page.text(str(self))

    def _repr_html_(self) -> str:
        words = "<br>".join(html.escape(line) for line in self._words())
        return f"<p>{words}</p>{html_table(self._rows())}"

    def _words(self) -> list[str]:
        rounds = "one round" if self.rounds == 1 else f"{self.rounds} rounds"
        found = [f"{len(self.measured())} of {len(self.points)} points, {rounds} each"]
        found.append(self.workload)
        found += [
            str(self.best(name))
            for name in ("generated_tokens_per_s", "ttft_p95")
            if any(point.series(name) for point in self.measured())
        ]
        seen = unseen(run for point in self.points for run in point.runs)
        return found + seen + self.warnings()

    def _rows(self) -> list[list[str]]:
        axes = list(self.points[0].values) if self.points else []
        names = [n for n in SHOWN if any(point.series(n) for point in self.measured())]
        rows = [[*axes, *names]]
        for point in self.points:
            cells = [_text(interval(point.series(n)), is_time(n)) for n in names]
            rows.append([*(str(point.values[axis]) for axis in axes), *cells])
        return rows


def _in_common(by_round: list[dict[int, float]]) -> list[list[float]]:
    """Of the rounds that all have: in another one of them would have met luck of its own."""
    rounds = sorted(set.intersection(*map(set, by_round)))
    return [[values[number] for number in rounds] for values in by_round]


def _unfit(points: list[Point], figure: str) -> str | None:
    """Why these points are not to be ranked by this figure."""
    if any(run.spoiled for point in points for run in point.runs):
        return "runs are spoiled (see the warnings)"
    shares = [share_served(point.runs) for point in points]
    if figure not in HIGHER_IS_BETTER and max(shares) - min(shares) > UNEVEN:
        return f"points served {min(shares):.0%} to {max(shares):.0%} of their requests"
    return None


def _text(found: Interval | None, time: bool) -> str:
    if found is None:
        return "–"
    if time:
        return spread(found.value, found.half)
    half = "" if found.half is None else f" ±{found.half:,.1f}"
    return f"{found.value:,.1f}{half}"


def _unit(figure: str, most: float) -> Unit:
    """In which a figure is drawn; rates and shares have none."""
    return unit_of(most) if is_time(figure) else Unit("", 1.0, math.inf)


def combinations(grid: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination, the last axis fastest. ValueError for an axis without values."""
    found: list[dict[str, Any]] = [{}]
    for name, values in grid.items():
        if not values:
            raise ValueError(f"{name} has no values to try")
        found = [point | {name: value} for point in found for value in values]
    return found
