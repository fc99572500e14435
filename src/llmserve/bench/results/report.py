"""What one run measured: a table in a terminal and in a notebook, a frame, JSON."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from llmserve.bench.results.cache_figures import CacheFigures, cache_words
from llmserve.bench.results.curves import Moment
from llmserve.bench.results.slo import Slo
from llmserve.core.quantities import duration
from llmserve.observe.window import Summary

if TYPE_CHECKING:
    import pandas as pd

LATENCIES = ("ttft", "itl", "tpot", "e2e", "queue")
HIT = "hit"
"""The latency of requests that the response cache answered: `hit_p50`, apart from the others."""
COLUMNS = ("mean", "p50", "p90", "p95", "p99")
CLIENT_LIMIT = "client_limit"
"""The error of a request not sent because so many of the driver's were unanswered."""
LATE_S = 0.005
LATE_SHARE = 0.1
"""A driver later than this in one of a hundred requests, and by so much of the TTFT that as many
met, was itself the limit."""
CACHE_UNSEEN = (
    "cache: not seen, for the replies do not say (those of vLLM do, with "
    "--enable-prompt-tokens-details)"
)
MISCOUNTED = 0.1
"""A prompt that the server counts so much longer or shorter is not the load that was asked for."""
UNEVEN = 0.01
"""Where shares of requests served are further apart, latencies are not of the same requests."""
_COUNTS = ("counted_prompt_tokens", "asked_prompt_tokens")
_STRAY = 0.01
"""Share of prompt tokens that may be cached beyond what the run's own prompts share."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies in seconds. In an open loop they count from the *scheduled* arrival, so that a
    server which stalls is charged for all who would have come meanwhile."""

    workload: str
    sent: int
    n: int
    """Requests that ended well: by stop or by length."""
    errors: dict[str, int]
    """Those that did not, by reason."""
    first_error: str | None = None
    """What was said of the first that failed, where anything was."""
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
    asked_prompt_tokens: int = 0
    counted_prompt_tokens: int = 0
    """Of requests that ended well, as the load asked for and as the server counted: of prompts sent
    as text it counts others than were meant. 0 where it sent no count."""
    batch_fill: float | None = None
    seq_fill: float | None = None
    """As in Snapshot, over the engine's steps during the run; None where no step was recorded."""
    slo: Slo | None = None
    met: int | None = None
    """Requests that met the SLO, or their own objective; None where there was none."""
    cached_tokens: int | None = None
    """Of `prompt_tokens`, those that needed no computation; None where it is unknown."""
    shared_tokens: int | None = 0
    """So many of them could be cached by the run's own earlier prompts; None where prompts that
    share a beginning were sent as text, whose tokens only the server knows."""
    same_prompts: bool = False
    response_cache: CacheFigures | None = None
    """What the response cache did, where the run had one: it is in no other figure."""
    preempted: int = 0
    kv_peak: float | None = None
    """The fullest that the engine's KV memory was, 0 to 1."""
    memory_bytes: int | None = None
    """Most that the session's processes held, where it was sampled."""
    lag: Summary = Summary()
    """How late the driver itself was: behind the scheduled arrival in an open loop, between a
    place's reply and its next request in a closed one."""
    quantiles: dict[str, list[float]] = {}
    """TTFT, ITL and E2E at 0 to 100 %, seconds."""
    timeline: list[Moment] = []
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

    @property
    def goodput_per_s(self) -> float | None:
        """Requests per second that met the SLO."""
        if self.met is None:
            return None
        return self.met / self.duration_s if self.duration_s else 0.0

    @property
    def prefix_hits(self) -> float | None:
        """Share of prompt tokens that were cached."""
        if self.cached_tokens is None or not self.prompt_tokens:
            return None
        return self.cached_tokens / self.prompt_tokens

    @property
    def empty(self) -> bool:
        """No request was served: its zeros are no figures of a server."""
        return self.n == 0

    @property
    def spoiled(self) -> bool:
        """The client was the limit, or a cache helped: nothing can be said of the server."""
        return self.client_limited or self.contaminated

    @property
    def contaminated(self) -> bool:
        """The cache held more of the prompts than this run can have put there. A preempted
        request finds its own prompt cached, so nothing is said of runs with preemption."""
        if self.same_prompts or self.preempted:
            return False
        if self.cached_tokens is None or self.shared_tokens is None:
            return False
        return self.cached_tokens - self.shared_tokens > _STRAY * self.prompt_tokens

    @property
    def client_limited(self) -> bool:
        """The driver, not the server, was the limit."""
        late = self.lag.p99 or 0.0
        noticeable = late > LATE_SHARE * (self.ttft.p99 or 0.0)
        return CLIENT_LIMIT in self.errors or (late > LATE_S and noticeable)

    def figures(self) -> dict[str, float | None]:
        """Every figure by name, seconds and counts; None where it was not measured."""
        rates = ("requests_per_s", "generated_tokens_per_s", "prompt_tokens_per_s")
        shares = ("goodput_per_s", "prefix_hits", "batch_fill", "seq_fill", "kv_peak")
        values = {name: getattr(self, name) for name in (*rates, *shares, "memory_bytes")}
        for name in LATENCIES:
            summary = getattr(self, name)
            values |= {f"{name}_{column}": getattr(summary, column) for column in COLUMNS}
        cache = self.response_cache
        hits = Summary() if cache is None else cache.hits
        values |= {f"{HIT}_{column}": getattr(hits, column) for column in COLUMNS}
        return values | {"hit_share": None if cache is None else cache.share}

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Report:
        return msgspec.json.decode(text, type=cls)

    def to_frame(self) -> pd.DataFrame:
        """A row per figure, seconds; the whole report's other fields are in `frame.attrs`."""
        import pandas as pd

        rows = {name: msgspec.structs.asdict(getattr(self, name)) for name in LATENCIES}
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=["n", *COLUMNS])
        everything = msgspec.to_builtins(self)
        frame.attrs = {k: v for k, v in everything.items() if k not in LATENCIES}
        return frame

    def __str__(self) -> str:
        lines = [self._headline(), *self._remarks(), ""]
        lines.append(f"{'':<6}{'n':>8}" + "".join(f"{name:>11}" for name in COLUMNS))
        for name, n, cells in self._table():
            lines.append(f"{name:<6}{n:>8}" + "".join(f"{cell:>11}" for cell in cells))
        return "\n".join(lines)

    def _repr_pretty_(self, page: Any, cycle: bool) -> None:
        page.text(str(self))

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("", "n", *COLUMNS))
        body = "".join(
            f"<tr><th>{name}</th><td>{n}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>"
            for name, n, cells in self._table()
        )
        words = "<br>".join(html.escape(line) for line in (self._headline(), *self._remarks()))
        return f"<p>{words}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _table(self) -> list[tuple[str, int, list[str]]]:
        rows = []
        for name in LATENCIES:
            summary: Summary = getattr(self, name)
            values = [getattr(summary, column) for column in COLUMNS]
            cells = [duration(value) for value in values]
            rows.append((name if name == "queue" else name.upper(), summary.n, cells))
        if (cache := self.response_cache) is not None:
            cells = [duration(getattr(cache.hits, column)) for column in COLUMNS]
            rows.append(("hits", cache.hits.n, cells))
        return rows

    def _headline(self) -> str:
        return (
            f"{self.n} of {self.sent} requests in {duration(self.duration_s)}: "
            f"{self.requests_per_s:,.2f} requests/s, "
            f"{self.generated_tokens_per_s:,.1f} generated and "
            f"{self.prompt_tokens_per_s:,.1f} prompt tokens/s"
        )

    def _remarks(self) -> list[str]:
        remarks = [*counted([self]), self.workload]
        if self.interrupted:
            remarks.append(f"interrupted with {self.unfinished} under way")
        if self.seq_fill is not None and self.batch_fill is not None:
            remarks.append(
                f"batches {self.seq_fill:.0%} full in sequences, {self.batch_fill:.0%} in tokens"
            )
        if self.met is not None:
            goal = self.slo or "each request's own"
            remarks.append(f"goodput {self.goodput_per_s:,.2f} requests/s within {goal}")
        remarks += cache_words(caches([self]))
        remarks += unseen([self])
        remarks += self.warnings()
        return remarks

    def warnings(self) -> list[str]:
        """Why these figures may not be taken as they are; none is the best."""
        return [*miscounted([self]), *not_served([self]), *self.doubts()]

    def doubts(self) -> list[str]:
        """Those of the warnings that are not about requests which failed."""
        remarks = []
        if CLIENT_LIMIT in self.errors:
            unsent = self.errors[CLIENT_LIMIT]
            remarks.append(
                f"CLIENT WAS THE LIMIT: {unsent} requests were not sent, for too many of the "
                "driver's were unanswered"
            )
        elif self.client_limited:
            remarks.append(
                f"CLIENT WAS THE LIMIT: it sent 1 % of its requests {duration(self.lag.p99)} late "
                "or later; latencies hold that time"
            )
        if self.response_cache is not None:
            remarks += self.response_cache.warnings()
        if self.contaminated:
            remarks.append(
                f"CONTAMINATED CACHE: {self.prefix_hits or 0:.0%} of the prompt tokens were cached "
                "before this run could have put them there"
            )
        if self.capped:
            remarks.append("more samples than are kept: percentiles are of the newest")
        return remarks


def is_time(figure: str) -> bool:
    """Whether this one of `Report.figures` is in seconds."""
    latency, _, column = figure.rpartition("_")
    return latency in LATENCIES or (latency == HIT and column in COLUMNS)


def caches(runs: Iterable[Report]) -> list[CacheFigures]:
    """What the response cache did in each run that had one."""
    return [run.response_cache for run in runs if run.response_cache is not None]


def share_served(runs: Sequence[Report]) -> float:
    sent = sum(run.sent for run in runs)
    return sum(run.n for run in runs) / sent if sent else 1.0


def not_served(runs: Sequence[Report]) -> list[str]:
    """What failed in them, by kind, in one line; no line where nothing did."""
    errors = sum((Counter(run.errors) for run in runs), Counter[str]())
    if not errors:
        return []
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(errors.items()))
    first_error = next((run.first_error for run in runs if run.first_error), None)
    why = "" if first_error is None else f" ({' '.join(first_error.split())[:200]})"
    return [
        f"not served: {kinds}, of {sum(run.sent for run in runs)} requests{why}; latencies are of "
        "the others"
    ]


def counted(runs: Sequence[Report]) -> list[str]:
    """A line of the tokens that the server counted, where it did."""
    tokens, asked = (sum(getattr(run, name) for run in runs) for name in _COUNTS)
    n = sum(run.n for run in runs)
    if not (n and tokens and asked):
        return []
    out = sum(run.generated_tokens for run in runs) / n
    return [f"counted by the server: {tokens / n:,.0f} tokens in and {out:,.0f} out a request"]


def miscounted(runs: Sequence[Report]) -> list[str]:
    """A line where prompts were of another length than was asked for, by the server's count."""
    tokens, asked = (sum(getattr(run, name) for run in runs) for name in _COUNTS)
    if not asked or abs(tokens - asked) <= MISCOUNTED * asked:
        return []
    n = max(1, sum(run.n for run in runs))
    return [
        f"OTHER PROMPTS THAN ASKED FOR: the server counted {tokens / n:,.0f} tokens in a request "
        f"where {asked / n:,.0f} were asked for; with --tokenizer (tokenizer=) they are exact"
    ]


def unseen(runs: Iterable[Report]) -> list[str]:
    """A line where a server did not say whether its cache helped."""
    return [CACHE_UNSEEN] if any(run.n and run.cached_tokens is None for run in runs) else []
