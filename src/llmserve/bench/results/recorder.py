"""Recorder: the fold that turns events into a Report, during a run or from its trace."""

from __future__ import annotations

import math
import threading
from collections import Counter
from typing import assert_never

from llmserve.bench.results import curves
from llmserve.bench.results.report import Report
from llmserve.bench.results.slo import Slo
from llmserve.core.events import (
    CacheLooked,
    DeviceSampled,
    Dispatched,
    Event,
    FairnessSampled,
    Finished,
    FirstToken,
    KnobsChanged,
    KnobsSatisfied,
    Rejection,
    StepRecorded,
    Submitted,
    TokensEmitted,
    WaitReasonChanged,
)
from llmserve.core.types import StepRecord
from llmserve.observe.request_timeline import RequestTimelines
from llmserve.observe.window import Samples, Summary

GAPS = 1_048_576
REQUESTS = 524_288
_NAN = math.nan
_NO_SLO = Slo()


class BenchRecorder:
    """Attach to an EventBus. Folds the requests named by `expect`; all of them if `everything`.

    Memory is bounded: about 24 MB of gaps and 29 MB of requests at most; then the newest count.
    """

    def __init__(
        self, *, everything: bool = False, slo: Slo | None = None, sees_cache: bool = True
    ) -> None:
        """`sees_cache`: whether each first token says how much of the prompt was cached; else the
        ends may, of some servers."""
        self._everything = everything
        self._slo = slo
        self._sees_cache = sees_cache
        self._expected: dict[str, tuple[float | None, int | None]] = {}
        """Requests of the run that have not ended: each one's own TTFT objective, and how many
        prompt tokens were asked for."""
        self._lock = threading.Lock()
        self._journeys = RequestTimelines()
        self._began = math.inf
        self._ended = -math.inf
        self._gaps = Samples(3, GAPS)  # t, gap, tokens
        self._firsts = Samples(2, REQUESTS)  # t, TTFT
        self._queued = Samples(2, REQUESTS)  # t, queue time
        self._ends = Samples(3, REQUESTS)  # t, E2E, TPOT
        self._sent = self._good = 0
        self._errors: Counter[str] = Counter()
        self._first_error: str | None = None
        self._met = 0
        self._limited = slo is not None
        """Whether any request has an objective: else goodput means nothing."""
        self._prompt_tokens = self._tokens = 0
        self._requested = self._counted = 0
        """Prompt tokens of those that ended well, where both are known."""
        self._cached_tokens = self._preempted = 0
        self._shared_tokens: int | None = 0
        self._kv_peak = 0.0
        self._memory_bytes: int | None = None
        self._fill = [0, 0, 0, 0]
        """Tokens, their budget, sequences, their cap: summed over steps."""

    def expect(
        self, request_id: str, *, shared_tokens: int | None = 0, ttft_slo_ms: float | None = None,
        requested_tokens: int | None = None,
    ) -> None:  # fmt: skip
        """This request is of the run. Call before it is submitted.

        shared_tokens: how much of its prompt an earlier one of the run had, so that a cache may
        help by so much and no more; None where that is known in words, not in tokens.
        requested_tokens: how long its prompt is meant to be; the server may count another length.
        """
        self._expected[request_id] = ttft_slo_ms, requested_tokens
        self._limited |= ttft_slo_ms is not None
        if shared_tokens is None or self._shared_tokens is None:
            self._shared_tokens = None
        else:
            self._shared_tokens += shared_tokens

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Sent, ended well, ended otherwise; tokens generated."""
        with self._lock:
            return self._sent, self._good, self._errors.total(), self._tokens

    def refuse(self, t: float, reason: str) -> None:
        """A request of the run that never reached the server counts as sent and refused."""
        with self._lock:
            self._sent += 1
            self._error(t, reason)

    def __call__(self, event: Event) -> None:
        match event:
            case StepRecorded():
                with self._lock:
                    self._fold_step(event.record)
            case DeviceSampled():
                if event.own_bytes is not None:
                    self._memory_bytes = max(self._memory_bytes or 0, event.own_bytes)
            case (
                WaitReasonChanged()
                | KnobsChanged()
                | KnobsSatisfied()
                | FairnessSampled()
                | CacheLooked()
            ):
                pass
            case TokensEmitted():
                with self._lock:
                    self._fold_tokens(event)
            case _:
                if self._everything or event.request_id in self._expected:
                    with self._lock:
                        self._fold(event)

    def _fold(
        self,
        event: Submitted | Rejection | Dispatched | FirstToken | Finished,
    ) -> None:
        match event:
            case Submitted():
                self._sent += 1
                self._began = min(self._began, event.t)
                self._journeys.submit(event)
            case Dispatched():
                if (journey := self._journeys.dispatch(event)) is not None:
                    self._queued.append(event.t, event.t - journey.submitted)
            case FirstToken():
                if (journey := self._journeys.first_token(event)) is not None:
                    self._firsts.append(event.t, event.t - journey.submitted)
                    self._prompt_tokens += journey.prompt_tokens
                    self._cached_tokens += event.cached_tokens
            case Finished():
                self._fold_end(event)
            case Rejection():
                if self._journeys.end(event.request_id) is None:
                    self._sent += 1  # refused by admission control: never submitted
                self._expected.pop(event.request_id, None)
                self._error(event.t, event.reason)
            case _:
                assert_never(event)

    def _fold_tokens(self, event: TokensEmitted) -> None:
        if not self._everything:
            own = {name: n for name, n in event.counts.items() if name in self._expected}
            if not own:
                return
            event = TokensEmitted(t=event.t, counts=own)
        self._ended = max(self._ended, event.t)
        for n, gap in self._journeys.emit(event):
            self._tokens += n
            if gap is not None:
                self._gaps.append(event.t, gap, n)

    def _error(self, t: float, reason: str) -> None:
        self._began, self._ended = min(self._began, t), max(self._ended, t)
        self._errors[reason] += 1

    def _fold_end(self, event: Finished) -> None:
        journey = self._journeys.end(event.request_id)
        own_ttft_ms, requested = self._expected.pop(event.request_id, (None, None))
        if journey is None:
            return
        if event.reason not in ("stop", "length"):
            self._error(event.t, event.reason)
            self._first_error = self._first_error or event.error
            return
        self._good += 1
        requested = requested or journey.prompt_tokens  # what was sent, where no length was meant
        if requested and event.prompt_tokens:  # of text a server may send no count
            self._requested += requested
            self._counted += event.prompt_tokens
        # what was counted by delivery is now known by token
        self._tokens += event.completion_tokens - journey.tokens
        if journey.first is not None:  # of a prompt sent as text the server counts the tokens
            self._prompt_tokens += event.prompt_tokens - journey.prompt_tokens
        if event.cached_tokens is not None:
            self._sees_cache = True
            self._cached_tokens += event.cached_tokens
        self._ended = max(self._ended, event.t)
        tpot = journey.tpot_s(event.t, event.completion_tokens)
        slo, e2e = self._slo or _NO_SLO, event.t - journey.submitted
        self._met += slo.met(journey.ttft_s, tpot, e2e, own_ttft_ms)
        self._ends.append(event.t, e2e, _NAN if tpot is None else tpot)

    def _fold_step(self, record: StepRecord) -> None:
        if self._journeys.running:
            tokens = record.computed_tokens
            step = (tokens, record.max_num_batched_tokens, len(record.rows), record.max_num_seqs)
            self._fill = [total + part for total, part in zip(self._fill, step, strict=True)]
            self._preempted += len(record.preempted)
            if record.kv_capacity_tokens:
                self._kv_peak = max(
                    self._kv_peak, record.kv_used_tokens / record.kv_capacity_tokens
                )

    def report(
        self,
        workload: str = "",
        *,
        lag: Summary | None = None,
        interrupted: bool = False,
        same_prompts: bool = False,
    ) -> Report:
        """What was measured so far; any thread may ask, at any time."""
        with self._lock:
            kept = (self._gaps, self._firsts, self._queued, self._ends)
            gaps, firsts, queued, ends = (s.window(-math.inf, math.inf) for s in kept)
            tokens, budget, rows, cap = self._fill
            began, ended = self._began, max(self._began, self._ended)
            return Report(
                workload=workload,
                sent=self._sent,
                n=self._good,
                errors=dict(self._errors),
                first_error=self._first_error,
                unfinished=self._journeys.waiting + self._journeys.running,
                duration_s=ended - began if began < math.inf else 0.0,
                ttft=Summary.of(firsts[:, 1]),
                itl=Summary.of(gaps[:, 1]),
                tpot=Summary.of(ends[:, 2]),
                e2e=Summary.of(ends[:, 1]),
                queue=Summary.of(queued[:, 1]),
                prompt_tokens=self._prompt_tokens,
                generated_tokens=self._tokens,
                asked_prompt_tokens=self._requested,
                counted_prompt_tokens=self._counted,
                slo=self._slo,
                met=self._met if self._limited else None,
                cached_tokens=self._cached_tokens if self._sees_cache else None,
                shared_tokens=self._shared_tokens,
                same_prompts=same_prompts,
                preempted=self._preempted,
                kv_peak=self._kv_peak if budget else None,
                memory_bytes=self._memory_bytes,
                batch_fill=tokens / budget if budget else None,
                seq_fill=rows / cap if cap else None,
                lag=lag or Summary(),
                interrupted=interrupted,
                capped=any(s.oldest() is not None for s in kept),
                quantiles={
                    "ttft": curves.quantiles(firsts[:, 1]),
                    "itl": curves.quantiles(gaps[:, 1]),
                    "e2e": curves.quantiles(ends[:, 1]),
                },
                timeline=curves.timeline(firsts, gaps, began, ended),
            )
