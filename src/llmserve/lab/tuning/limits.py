"""`Limits`: an SLO over a run (`ttft_p95_ms=300`), and what of it counts for each request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from llmserve.bench.results.report import COLUMNS, LATENCIES, Report
from llmserve.bench.results.slo import Slo
from llmserve.core.quantities import duration
from llmserve.core.validation import mistyped, one_of, real, unlike

MAXIMIZE = {
    "goodput": "goodput_per_s",
    "tokens": "generated_tokens_per_s",
    "requests": "requests_per_s",
}
"""What can be maximized, and the figure of a report that it is."""
UNITS = {
    "goodput_per_s": "requests/s within the SLO",
    "generated_tokens_per_s": "generated tokens/s",
    "requests_per_s": "requests/s",
}
_NAMES = tuple(f"{latency}_{column}" for latency in LATENCIES for column in COLUMNS)
_UNIT_MS = {"ms": 1.0, "s": 1e3, "": 1.0}
_OF_REQUESTS = {"ttft": "ttft_ms", "itl": "tpot_ms", "tpot": "tpot_ms", "e2e": "e2e_ms"}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Upper limits of a run's figures, by name, in milliseconds."""

    most_ms: dict[str, float]

    @property
    def of_a_request(self) -> Slo | None:
        """Each limit applied to single requests, the tightest of a kind: TTFT, the mean gap between
        tokens, E2E. Goodput counts who meets them; None where no limit is of a request."""
        found: dict[str, float] = {}
        for name, most in self.most_ms.items():
            field = _OF_REQUESTS.get(name.partition("_")[0])
            if field is not None:
                found[field] = min(most, found.get(field, most))
        return Slo(**found) if found else None

    def shares(self, report: Report) -> dict[str, float]:
        """Each figure as a share of its limit: 1 is just met. A figure that was not measured, of a
        run that served nothing, is far above."""
        figures = report.figures()
        return {
            name: (1e6 if (value := figures[name]) is None else value * 1e3 / most)
            for name, most in self.most_ms.items()
        }

    def worst(self, report: Report) -> float:
        """The largest share; a run that left requests unserved breaks every limit."""
        shares = max(self.shares(report).values(), default=0.0)
        return max(shares, 1e6) if report.n < report.sent - report.unfinished else shares

    def __str__(self) -> str:
        return " and ".join(
            f"{name} {duration(most / 1e3)}" for name, most in self.most_ms.items()
        )


def read_limits(slo: Mapping[str, Any] | str | None) -> Limits:
    """`{"ttft_p95_ms": 300}`, or `ttft_p95=300ms itl_p99=50ms` (ms where no unit is typed)."""
    if slo is None:
        return Limits(most_ms={})
    if isinstance(slo, str):
        slo = dict(_typed(word) for word in slo.replace(",", " ").split())
    if not isinstance(slo, Mapping):
        raise mistyped("slo", "limits by name", slo)
    most = {}
    for name, limit in slo.items():
        known = one_of("a limit of the SLO", str(name).removesuffix("_ms"), _NAMES)
        most[known] = real(f"the limit {name}", limit, 0, unit="ms", above=True)
    return Limits(most_ms=most)


def _typed(word: str) -> tuple[str, float | str]:
    name, _, text = word.replace(":", "=").partition("=")
    found = re.fullmatch(r"([\d.]+)(ms|s|)", text)
    if not name or found is None:
        raise unlike("a limit of the SLO", "name=time (ttft_p95=300ms)", word)
    ms = real(f"the limit {name}", found[1], 0, unit="ms", above=True)
    return name, ms * _UNIT_MS[found[2]]


def read_maximize(name: str) -> str:
    """The figure that is meant."""
    return MAXIMIZE[one_of("maximize", name, MAXIMIZE)]
