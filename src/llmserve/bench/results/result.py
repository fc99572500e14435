"""Result: what several runs of one workload measured, each figure with how far it is to be trusted.

A figure is the mean of the runs' figures; ± is the half-width of its 95 % interval over runs.
"""

from __future__ import annotations

import html
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from llmserve.bench.results.cache_figures import cache_words
from llmserve.bench.results.intervals import Interval, interval
from llmserve.bench.results.report import (
    COLUMNS,
    HIT,
    LATENCIES,
    Report,
    caches,
    counted,
    miscounted,
    not_served,
    unseen,
)
from llmserve.core.quantities import spread
from llmserve.observe.window import Summary
from llmserve.plots.figures import in_unit, lines

if TYPE_CHECKING:
    import pandas as pd

    from llmserve.plots.figures import Figure

RATES = {
    "requests_per_s": "requests/s",
    "generated_tokens_per_s": "generated tokens/s",
    "prompt_tokens_per_s": "prompt tokens/s",
    "goodput_per_s": "goodput, requests/s",
}
SHARES = {
    "prefix_hits": "prompt tokens cached",
    "seq_fill": "batch filled, sequences",
    "batch_fill": "batch filled, tokens",
    "kv_peak": "KV memory, peak",
    "hit_share": "requests that the response cache answered",
}
_GIB = 2.0**30


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a bench gives: print it, or show it as a cell's last line.

    `ttft`, `itl`, `tpot`, `e2e`, `queue` are latencies (seconds: mean, p50, p90, p95, p99, n), and
    `generated_tokens_per_s`, `requests_per_s`, `goodput_per_s` rates, as means over the runs;
    `figure("ttft_p95")` is one of them with its interval, `to_frame()` all. `latencies()` and
    `timeline()` draw. `prefix_hits`, `seq_fill`, `batch_fill` are shares, 0 to 1, None unmeasured.
    """

    workload: str
    engine: str = ""
    model: str = ""
    runs: tuple[Report, ...]
    """Those that came to their end; the one that was under way, where it is the only one."""
    planned: int
    interrupted: bool = False

    def figure(self, name: str) -> Interval | None:
        """A figure of `Report.figures`, over the runs that measured it; seconds and counts."""
        found = [value for run in self.runs if (value := run.figures()[name]) is not None]
        return interval(found)

    @property
    def sent(self) -> int:
        """Requests sent, in all runs."""
        return sum(run.sent for run in self.runs)

    @property
    def n(self) -> int:
        """Requests that ended well, in all runs."""
        return sum(run.n for run in self.runs)

    @property
    def errors(self) -> dict[str, int]:
        """Requests that were not served, by kind, in all runs."""
        return dict(sum((Counter(run.errors) for run in self.runs), Counter[str]()))

    @property
    def generated_tokens(self) -> int:
        return sum(run.generated_tokens for run in self.runs)

    @property
    def requests_per_s(self) -> float:
        return self._mean("requests_per_s") or 0.0

    @property
    def generated_tokens_per_s(self) -> float:
        return self._mean("generated_tokens_per_s") or 0.0

    @property
    def goodput_per_s(self) -> float | None:
        return self._mean("goodput_per_s")

    @property
    def prefix_hits(self) -> float | None:
        return self._mean("prefix_hits")

    @property
    def seq_fill(self) -> float | None:
        return self._mean("seq_fill")

    @property
    def batch_fill(self) -> float | None:
        return self._mean("batch_fill")

    @property
    def ttft(self) -> Summary:
        """Seconds, each figure the mean over runs; `n` is of all runs together."""
        return self._latency("ttft")

    @property
    def itl(self) -> Summary:
        return self._latency("itl")

    @property
    def tpot(self) -> Summary:
        return self._latency("tpot")

    @property
    def e2e(self) -> Summary:
        return self._latency("e2e")

    @property
    def queue(self) -> Summary:
        return self._latency("queue")

    def warnings(self) -> list[str]:
        """Why these figures may not be taken as they are, each said once."""
        found = [*miscounted(self.runs), *not_served(self.runs)]
        found += [
            f"run {number}: {warning}"
            for number, run in enumerate(self.runs, start=1)
            for warning in run.doubts()
        ]
        if self.interrupted:
            ended = sum(not run.interrupted for run in self.runs)
            found.append(f"interrupted: {ended} of {self.planned} runs came to their end")
        return found

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Result:
        """What `to_json` wrote; msgspec.ValidationError for anything else."""
        return msgspec.json.decode(text, type=cls)

    def to_frame(self) -> pd.DataFrame:
        """A row per figure: mean over runs, both ends of its interval, runs that measured it, and
        `n`, the samples of all runs (gaps of ITL, requests of the others). Seconds and counts; the
        runs' own figures are in the columns `run 1`, `run 2`, …"""
        import pandas as pd

        runs = [run.figures() for run in self.runs]
        rows = {}
        for name in runs[0] if runs else ():
            found = self.figure(name)
            ends = (None, None, None, 0)
            if found is not None:
                ends = (found.value, found.low, found.high, found.n)  # type: ignore[assignment]  # values in place of none
            rows[name] = [*ends, self._samples(name), *(run[name] for run in runs)]
        columns = ["mean", "low", "high", "runs", "n", *(f"run {i + 1}" for i in range(len(runs)))]
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
        frame.attrs = {"workload": self.workload, "warnings": self.warnings()}
        return frame

    def to_markdown(self) -> str:
        """Two tables, as docs/benchmarks.md holds them."""
        heads = ("n", *COLUMNS)
        rows = [("", *heads), ("---", *("---:" for _ in heads)), *self._latency_rows()]
        parts = [
            *self._words(), "",
            *(f"| {name} | {value} |" for name, value in
              (("figure", "mean over runs"), ("---", "---:"), *self._rate_rows())), "",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]  # fmt: skip
        return "\n".join(parts) + "\n"

    def latencies(self, title: str = "Who has waited how long at most") -> Figure:
        """The share of requests by their time to first token and to the last, a line per figure."""
        curves = {}
        for name in ("ttft", "e2e"):
            found = [run.quantiles.get(name) for run in self.runs]
            kept = [values for values in found if values]
            if kept:
                mean = [sum(column) / len(kept) for column in zip(*kept, strict=True)]
                curves[name.upper()] = (mean, [float(i) for i in range(101)])
        drawn, unit = in_unit(curves, "x")
        return lines(title, drawn, x=unit, y="% of requests")

    def timeline(self, title: str = "Tokens per second, run by run") -> Figure:
        """Generated tokens per second over the seconds of each run."""
        curves = {
            f"run {number}": ([m.t_s for m in run.timeline], [m.tokens_per_s for m in run.timeline])
            for number, run in enumerate(self.runs, start=1)
            if run.timeline
        }
        return lines(title, curves, x="seconds", y="tokens/s", steps=True)

    def __str__(self) -> str:
        parts = [*self._words(), ""]
        parts += [f"{name:<26}{value:>20}" for name, value in self._rate_rows()]
        parts += ["", f"{'':<6}{'n':>8}" + "".join(f"{name:>18}" for name in COLUMNS)]
        for name, n, *cells in self._latency_rows():
            parts.append(f"{name:<6}{n:>8}" + "".join(f"{cell:>18}" for cell in cells))
        return "\n".join(parts)

    def _repr_pretty_(self, page: Any, cycle: bool) -> None:
        page.text(str(self))

    def _repr_html_(self) -> str:
        words = "<br>".join(html.escape(line) for line in self._words())
        rates = "".join(f"<tr><th>{n}</th><td>{v}</td></tr>" for n, v in self._rate_rows())
        head = "".join(f"<th>{name}</th>" for name in ("", "n", *COLUMNS))
        body = "".join(
            f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
            for name, *cells in self._latency_rows()
        )
        return (
            f"<p>{words}</p><table>{rates}</table>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def _words(self) -> list[str]:
        ended = len(self.runs)
        times = f"{ended} run{'s' * (ended != 1)}"
        found = [f"{self.n} of {self.sent} requests served in {times}; ± holds 95 % over runs"]
        if ended == 1:
            found = [f"{self.n} of {self.sent} requests served in one run: no interval"]
        found += [*counted(self.runs), self.workload, *cache_words(caches(self.runs))]
        return found + unseen(self.runs) + self.warnings()

    def _rate_rows(self) -> list[tuple[str, str]]:
        rows = [(words, _cell(self.figure(name))) for name, words in RATES.items()]
        rows += [(words, _cell(self.figure(name), 100, "%")) for name, words in SHARES.items()]
        rows.append(("memory, most", _cell(self.figure("memory_bytes"), 1 / _GIB, " GiB")))
        return [(words, cell) for words, cell in rows if cell != "–"]

    def _latency_rows(self) -> list[tuple[str, ...]]:
        named = [(name if name == "queue" else name.upper(), name) for name in LATENCIES]
        hits = self._samples(f"{HIT}_p50")
        return [
            (
                words,
                f"{self._samples(f'{name}_p50'):,}",
                *(_time(self.figure(f"{name}_{column}")) for column in COLUMNS),
            )
            for words, name in [*named, *([("hits", HIT)] if hits else [])]
        ]

    def _samples(self, figure: str) -> int:
        latency = figure.rpartition("_")[0]
        if latency == HIT:
            return sum(cache.hits.n for cache in caches(self.runs))
        return self._latency(latency).n if latency in LATENCIES else self.n

    def _mean(self, name: str) -> float | None:
        found = self.figure(name)
        return None if found is None else found.value

    def _latency(self, name: str) -> Summary:
        n = sum(getattr(run, name).n for run in self.runs)
        return Summary(n=n, **{column: self._mean(f"{name}_{column}") for column in COLUMNS})


def _time(found: Interval | None) -> str:
    return "–" if found is None else spread(found.value, found.half)


def _cell(found: Interval | None, scale: float = 1.0, unit: str = "") -> str:
    if found is None:
        return "–"
    value = f"{found.value * scale:,.2f}"
    return value + unit if found.half is None else f"{value} ±{found.half * scale:,.2f}{unit}"
