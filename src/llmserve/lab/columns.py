"""What became of a simulation's requests, in columns: 68 bytes each, and no object stays.

The figures are those that `BenchRecorder` makes of the events of a live run, folded where requests
end and steps are taken.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmserve.bench.results import curves
from llmserve.bench.results.report import Report
from llmserve.bench.results.slo import Slo
from llmserve.core.types import Request
from llmserve.engines.batching.sequence import Plan
from llmserve.lab.front import Simulated
from llmserve.lab.token_gaps import TokenGaps
from llmserve.observe.requests import RequestRow
from llmserve.observe.window import Summary
from llmserve.scheduling.admission import Rejected

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NAN = math.nan
_NO_SLO = Slo()
_LAGS = 65_536
_TICK = 64
TIMES = ("arrival", "dispatched", "first_token", "ended")
"""Virtual seconds; NaN where a request never came so far."""
COUNTS = (
    "number", "prompt_tokens", "max_tokens", "completion_tokens", "cached_tokens", "preemptions",
    "priority", "tenant", "reason",
)  # fmt: skip
"""`number` is how many were sent before; `tenant` and `reason` are places in the lists of names."""


class Columns:
    """Satisfies `Ends`."""

    def __init__(
        self, slo: Slo | None = None, *, each: Callable[[RequestRow], object] | None = None,
        tick: Callable[[], object] | None = None,
    ) -> None:
        """each: called with each request as it ends. tick: called now and then."""
        self._slo, self._each, self._tick = slo, each, tick
        self._times = {name: array("d") for name in TIMES}
        self._counts = {name: array("i") for name in COUNTS}
        self._names: dict[str, dict[str, int]] = {"tenant": {}, "reason": {}}
        self.token_times: dict[int, array[float]] = {}
        self.gap_log = TokenGaps()
        self._began, self._ended_s = math.inf, -math.inf
        self.errors: Counter[str] = Counter()
        self._first_error: str | None = None
        self.ended_count = self.good = self.met = 0
        self._limited = slo is not None
        self._sums: Counter[str] = Counter()
        self._fill = [0, 0, 0, 0, 0]
        """Tokens, their budget, sequences, their cap, summed over steps; and preemptions."""
        self._kv_peak = self._shared_tokens = 0

    def rejected(self, request: Request, number: int, rejected: Rejected, now: float) -> None:
        """It counts from now: it was never let in."""
        self._began = min(self._began, now)
        gone = Simulated(request, number, None, ended_s=now, reason=rejected.reason)
        self._take(gone, now)

    def expect(
        self, request_id: str, *, shared_tokens: int, ttft_slo_ms: float | None
    ) -> None:
        self._shared_tokens += shared_tokens

    def refused(self, when: float, reason: str) -> None:
        """A request was not even sent."""
        self._began, self._ended_s = min(self._began, when), max(self._ended_s, when)
        self.errors[reason] += 1
        self.ended_count += 1

    def ended(self, simulated: Simulated) -> None:
        self._began = min(self._began, simulated.request.arrival)
        self._take(simulated, simulated.request.arrival)

    def gaps(self, times: list[float], gaps_s: list[float], requests: int) -> None:
        self.gap_log.add(times, gaps_s, requests)

    def stepped(self, plan: Plan, steps: int, kv_used_blocks: int) -> None:
        tokens = rows = plan.together
        if plan.rows:
            rows += len(plan.rows)
            tokens += sum([row.tokens for row in plan.rows])
        fill = self._fill
        fill[0] += steps * tokens
        fill[1] += steps * plan.max_num_batched_tokens
        fill[2] += steps * rows
        fill[3] += steps * plan.max_num_seqs
        fill[4] += len(plan.preempted)
        if kv_used_blocks > self._kv_peak:
            self._kv_peak = kv_used_blocks

    def names(self, column: str) -> list[str]:
        return list(self._names[column])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every column, in the order in which requests were sent."""
        import numpy as np

        order = np.argsort(np.frombuffer(self._counts["number"], np.int32))
        kept: list[tuple[str, array[float] | array[int]]] = [
            *self._times.items(), *self._counts.items(),
        ]  # fmt: skip
        return {name: np.frombuffer(column, column.typecode)[order] for name, column in kept}

    def report(
        self, workload: str, arrays: dict[str, NDArray[Any]], *, kv_blocks: int, expected: bool,
        same_prompts: bool, lags: int,
    ) -> Report:  # fmt: skip
        """arrays: its own. expected: it is known how many prompt tokens a cache may have had."""
        sums, times = self._sums, self._seconds(arrays)
        tokens, budget, rows, cap, preempted = self._fill
        began, ended = self._began, max(self._began, self._ended_s)
        firsts = times["firsts"]
        return Report(
            workload=workload,
            sent=self.ended_count,
            n=self.good,
            errors=dict(self.errors),
            first_error=self._first_error,
            unfinished=0,
            duration_s=ended - began if began < math.inf else 0.0,
            ttft=Summary.of(firsts[:, 1]),
            itl=self.gap_log.summary(),
            tpot=Summary.of(times["tpot"]),
            e2e=Summary.of(times["e2e"]),
            queue=Summary.of(times["queued"]),
            prompt_tokens=sums["prompt_tokens"],
            generated_tokens=sums["generated"],
            asked_prompt_tokens=sums["counted"],
            counted_prompt_tokens=sums["counted"],
            slo=self._slo,
            met=self.met if self._limited else None,
            cached_tokens=sums["cached"],
            shared_tokens=self._shared_tokens if expected else None,
            same_prompts=same_prompts,
            preempted=preempted,
            kv_peak=self._kv_peak / kv_blocks if budget else None,
            batch_fill=tokens / budget if budget else None,
            seq_fill=rows / cap if cap else None,
            lag=zero_lag(lags),
            quantiles={
                "ttft": curves.quantiles(firsts[:, 1]),
                "itl": self.gap_log.quantiles(),
                "e2e": curves.quantiles(times["e2e"]),
            },
            timeline=curves.timeline(firsts, self.gap_log.timed(), began, ended),
        )

    def _seconds(self, columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
        """What is summed up of the times: of all first tokens, and of good ends."""
        import numpy as np

        arrival, first, ended = (columns[name] for name in ("arrival", "first_token", "ended"))
        tokens = columns["completion_tokens"]
        good = np.isin(columns["reason"], [self._names["reason"].get(one, -1) for one in _GOOD])
        begun = ~np.isnan(first)
        several = good & (tokens > 1)
        return {
            "firsts": np.stack((first[begun], first[begun] - arrival[begun]), axis=1),
            "tpot": (ended[several] - first[several]) / (tokens[several] - 1),
            "e2e": ended[good] - arrival[good],
            "queued": columns["dispatched"] - arrival,
        }

    def _take(self, one: Simulated, arrival: float) -> None:
        self.ended_count += 1
        if self._tick is not None and not self.ended_count % _TICK:
            self._tick()
        self._ended_s = max(self._ended_s, one.ended_s)
        sums, request = self._sums, one.request
        prompt_tokens = len(request.prompt_ids)
        sums["generated"] += one.generated
        if one.first_s is not None:
            sums["prompt_tokens"] += prompt_tokens
            sums["cached"] += one.cached_tokens
        self._limited |= request.ttft_slo_ms is not None
        if one.served:
            self.good += 1
            sums["counted"] += prompt_tokens
            limited = self._slo is not None or request.ttft_slo_ms is not None
            self.met += self._meets(one) if limited else 1
        else:
            self.errors[str(one.reason)] += 1
            self._first_error = self._first_error or one.error
        self._append(one, arrival, prompt_tokens)
        if self._each is not None:
            self._each(row_of(one, arrival))

    def _meets(self, one: Simulated) -> bool:
        arrival, first, tokens = one.request.arrival, one.first_s, one.generated
        tpot = None if first is None or tokens < 2 else (one.ended_s - first) / (tokens - 1)
        slo, e2e = self._slo or _NO_SLO, one.ended_s - arrival
        ttft = None if first is None else first - arrival  # of a prompt alone
        return slo.met(ttft, tpot, e2e, one.request.ttft_slo_ms)

    def _append(self, one: Simulated, arrival: float, prompt_tokens: int) -> None:
        times, counts, request = self._times, self._counts, one.request
        times["arrival"].append(arrival)
        times["dispatched"].append(_NAN if one.dispatched_s is None else one.dispatched_s)
        times["first_token"].append(_NAN if one.first_s is None else one.first_s)
        times["ended"].append(one.ended_s)
        counts["number"].append(one.number)
        counts["prompt_tokens"].append(prompt_tokens)
        counts["max_tokens"].append(request.sampling.max_tokens)
        counts["completion_tokens"].append(one.generated)
        counts["cached_tokens"].append(one.cached_tokens)
        counts["preemptions"].append(one.preemptions)
        counts["priority"].append(request.priority)
        counts["tenant"].append(_place(self._names["tenant"], request.tenant))
        counts["reason"].append(_place(self._names["reason"], str(one.reason)))
        if one.times is not None:
            self.token_times[one.number] = array("d", one.times)


_GOOD = ("stop", "length")


def _place(names: dict[str, int], name: str) -> int:
    return names.setdefault(name, len(names))


def zero_lag(sent: int) -> Summary:
    """Of a driver in virtual time, which is never late."""
    import numpy as np

    return Summary.of(np.zeros(min(sent, _LAGS)))


def row_of(one: Simulated, arrival: float) -> RequestRow:
    """A request that has ended, as the log of a live server has it."""
    request = one.request
    refused = one.dispatched_s is None and one.reason not in ("abort", "timeout")

    def since(moment: float | None) -> float | None:
        return None if moment is None else moment - arrival

    return RequestRow(
        id=request.id,
        tenant=request.tenant,
        priority=request.priority,
        state="refused" if refused else "done",
        arrival=arrival,
        prompt_tokens=len(request.prompt_ids),
        max_tokens=request.sampling.max_tokens,
        completion_tokens=one.generated,
        cached_tokens=None if one.first_s is None else one.cached_tokens,
        queue_s=since(one.dispatched_s),
        ttft_s=since(one.first_s),
        e2e_s=since(one.ended_s),
        finish_reason=one.reason,  # type: ignore[arg-type]  # of a rejection or an end
        error=one.error,
        preemptions=one.preemptions,
    )

