"""How far predictions were off on held-out traffic: bias, MAPE, and what two live runs differ by.

Held-out loads ran twice on identical arrivals, after the calibration and with no part in it. The
difference of the two runs is the least error that any predictor could show.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from llmserve.bench.results.report import Report, is_time
from llmserve.core.quantities import NONE, duration
from llmserve.lab.tables import html_table, text_table

FIGURES = (
    "ttft_p50", "ttft_p95", "itl_p50", "itl_p95", "generated_tokens_per_s", "goodput_per_s",
)  # fmt: skip
TARGETS = {"ttft": 0.10, "itl": 0.05, "generated_tokens_per_s": 0.03, "goodput_per_s": 0.03}
"""A prediction is recommended where its error is within this, or within what two live runs on
identical arrivals differ by, whichever is larger."""
Figures = Mapping[str, float | None]


def target_of(figure: str) -> float:
    return TARGETS[figure.rpartition("_")[0] if is_time(figure) else figure]


def figures_of(report: Report) -> dict[str, float | None]:
    """The figures that predictions have, by name; seconds and counts."""
    values = report.figures()
    return {name: values[name] for name in FIGURES}


class HeldOut(msgspec.Struct, frozen=True, kw_only=True):
    """A load that was predicted, and then ran twice on identical arrivals."""

    name: str
    """Its place: "40 %" of capacity, or "closed loop"."""
    load: str
    loop: Literal["open", "closed"]
    predicted: dict[str, float | None]
    live: tuple[dict[str, float | None], ...]
    steps_error: float | None = None
    """Of the time of all its engine steps together, by the model for just these steps: what is off
    here is the model, or a machine that is faster or slower than it was."""

    def truth(self, figure: str) -> float | None:
        """Mean of the live runs."""
        found = [value for run in self.live if (value := run.get(figure)) is not None]
        return sum(found) / len(found) if found else None

    def error(self, figure: str) -> float | None:
        """Signed and relative: 0.1 is predicted a tenth too high."""
        truth, predicted = self.truth(figure), self.predicted.get(figure)
        return None if not truth or predicted is None else predicted / truth - 1

    def noise(self, figure: str) -> float | None:
        """The difference of the two live runs, relative to their mean; None of fewer than two."""
        found = [value for run in self.live if (value := run.get(figure)) is not None]
        truth = self.truth(figure)
        return (max(found) - min(found)) / truth if len(found) > 1 and truth else None


class FigureError(msgspec.Struct, frozen=True, kw_only=True):
    """The error of one figure over held-out loads, as shares."""

    figure: str
    bias: float
    mape: float
    noise: float | None
    """Mean difference of two live runs; None where no load ran twice."""
    target: float
    n: int
    """Held-out loads."""

    @property
    def allowed(self) -> float:
        return max(self.target, self.noise or 0.0)

    @property
    def met(self) -> bool:
        return self.mape <= self.allowed

    def __str__(self) -> str:
        noise = "" if self.noise is None else f", two live runs differ by {self.noise:.1%}"
        return f"bias {self.bias:+.1%}, MAPE {self.mape:.1%} of {self.n} held out{noise}"


class HeldOutErrors(msgspec.Struct, frozen=True, kw_only=True):
    """Show it as a cell's last line: every held-out load, predicted beside measured."""

    held_out: tuple[HeldOut, ...] = ()
    capacity_tokens_per_s: float | None = None
    """Generated tokens per second of the closed loop, live."""
    knobs: dict[str, object] = {}
    """Those that were not the calibration's own."""

    def of(self, figure: str, loop: str | None = None) -> FigureError | None:
        """None where no held-out load has this figure. loop: of "open" or "closed" loads alone."""
        rows = [
            (error, each.noise(figure))
            for each in self.held_out
            if loop in (None, each.loop) and (error := each.error(figure)) is not None
        ]
        if not rows:
            return None
        noises = [noise for _, noise in rows if noise is not None]
        return FigureError(
            figure=figure,
            bias=sum(error for error, _ in rows) / len(rows),
            mape=sum(abs(error) for error, _ in rows) / len(rows),
            noise=sum(noises) / len(noises) if noises else None,
            target=target_of(figure),
            n=len(rows),
        )

    def failures(self, loop: str | None = None) -> list[str]:
        """Figures whose error is beyond what is allowed, in words."""
        found = (self.of(figure, loop) for figure in FIGURES)
        return [
            f"{each.figure}: {each}, beyond {each.allowed:.1%}"
            for each in found
            if each is not None and not each.met
        ]

    def rows(self) -> Iterator[tuple[str, ...]]:
        for each in self.held_out:
            for figure in FIGURES:
                error, noise = each.error(figure), each.noise(figure)
                if error is None:
                    continue
                allowed = max(target_of(figure), noise or 0.0)
                yield (
                    each.name, figure, shown(figure, each.predicted[figure]),
                    shown(figure, each.truth(figure)), f"{error:+.1%}",
                    NONE if noise is None else f"{noise:.1%}",
                    "yes" if abs(error) <= allowed else "NO",
                )  # fmt: skip

    def words(self) -> list[str]:
        loads = "1 load" if len(self.held_out) == 1 else f"{len(self.held_out)} loads"
        found = [f"{loads}, held out: predicted, then run on identical arrivals each time"]
        found += [f"{name}: {error}" for name in FIGURES if (error := self.of(name)) is not None]
        steps = [each for each in self.held_out if each.steps_error is not None]
        if steps:
            shares = ", ".join(f"{each.name} {each.steps_error:+.1%}" for each in steps)
            found.append(f"the live runs' own steps, by the model: {shares}")
        return found

    def drift(self, loop: str | None = None) -> float | None:
        """The largest error of the step times themselves."""
        found = [
            each.steps_error
            for each in self.held_out
            if loop in (None, each.loop) and each.steps_error is not None
        ]
        return max(found, key=abs, default=None)

    def to_markdown(self) -> str:
        rows = [HEAD, ("---",) * 2 + ("---:",) * (len(HEAD) - 2), *self.rows()]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"

    def __str__(self) -> str:
        return "\n".join([*self.words(), "", *text_table([HEAD, *self.rows()])])

    def _repr_pretty_(self, page: object, cycle: bool) -> None:
        page.text(str(self))  # type: ignore[attr-defined]  # IPython's printer

    def _repr_html_(self) -> str:
        words = "<br>".join(html.escape(line) for line in self.words())
        return f"<p>{words}</p>{html_table([HEAD, *self.rows()])}"


HEAD = ("held out", "figure", "predicted", "live", "error", "live twice", "within target")


def shown(figure: str, value: float | None) -> str:
    if value is None:
        return NONE
    return duration(value) if is_time(figure) else f"{value:,.2f}"
