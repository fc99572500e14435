"""Recorder: the fold that turns events into a Report, during a run or from its trace."""

from __future__ import annotations

import math
import threading
from collections import Counter
from typing import assert_never

from llmserve.bench.report import Report
from llmserve.core import StepRecord
from llmserve.events import (
    CacheLooked,
    DeviceSampled,
    Dispatched,
    Event,
    FairnessSampled,
    Finished,
    FirstToken,
    Held,
    KnobsChanged,
    KnobsSatisfied,
    Rejection,
    StepRecorded,
    Submitted,
    TokensEmitted,
)
from llmserve.observe.journey import Journeys
from llmserve.observe.samples import Samples, Summary

GAPS = 1_048_576
REQUESTS = 262_144
_NAN = math.nan


class Recorder:
    """Attach to an EventBus. Folds the requests named by `expect`; all of them if `everything`.

    Memory is bounded: about 16 MB of gaps and 16 MB of requests at most; then the newest count.
    """

    def __init__(self, *, everything: bool = False) -> None:
        self._everything = everything
        self._expected: set[str] = set()
        self._lock = threading.Lock()
        self._journeys = Journeys()
        self._began = math.inf
        self._ended = -math.inf
        self._gaps = Samples(2, GAPS)  # t, gap
        self._firsts = Samples(2, REQUESTS)  # t, TTFT
        self._queued = Samples(2, REQUESTS)  # t, queue time
        self._ends = Samples(3, REQUESTS)  # t, E2E, TPOT
        self._sent = self._good = 0
        self._errors: Counter[str] = Counter()
        self._prompt_tokens = self._tokens = 0
        self._fill = [0, 0, 0, 0]
        """Tokens, their budget, sequences, their cap: summed over steps."""

    def expect(self, request_id: str) -> None:
        """This request is of the run. Call before it is submitted."""
        self._expected.add(request_id)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Sent, ended well, ended otherwise."""
        with self._lock:
            return self._sent, self._good, self._errors.total()

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
            case (
                Held() | KnobsChanged() | KnobsSatisfied() | DeviceSampled() | FairnessSampled()
                | CacheLooked()
            ):
                pass
            case _:
                if self._everything or event.request_id in self._expected:
                    with self._lock:
                        self._fold(event)

    def _fold(
        self,
        event: Submitted | Rejection | Dispatched | FirstToken | TokensEmitted | Finished,
    ) -> None:
        match event:
            case TokensEmitted():
                self._tokens += event.n
                self._ended = max(self._ended, event.t)
                if (gap := self._journeys.emit(event)) is not None:
                    self._gaps.append(event.t, gap)
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
            case Finished():
                self._fold_end(event)
            case Rejection():
                if self._journeys.end(event.request_id) is None:
                    self._sent += 1  # refused at the door: it was never submitted
                self._expected.discard(event.request_id)
                self._error(event.t, event.reason)
            case _:
                assert_never(event)

    def _error(self, t: float, reason: str) -> None:
        self._began, self._ended = min(self._began, t), max(self._ended, t)
        self._errors[reason] += 1

    def _fold_end(self, event: Finished) -> None:
        journey = self._journeys.end(event.request_id)
        self._expected.discard(event.request_id)
        if journey is None:
            return
        if event.reason not in ("stop", "length"):
            self._error(event.t, event.reason)
            return
        self._good += 1
        # what was counted by delivery is now known by token
        self._tokens += event.completion_tokens - journey.tokens
        self._ended = max(self._ended, event.t)
        tpot = journey.tpot_s(event.t, event.completion_tokens)
        self._ends.append(event.t, event.t - journey.submitted, _NAN if tpot is None else tpot)

    def _fold_step(self, record: StepRecord) -> None:
        if self._journeys.running:
            tokens = sum(row.tokens for row in record.rows)
            step = (tokens, record.max_num_batched_tokens, len(record.rows), record.max_num_seqs)
            self._fill = [total + part for total, part in zip(self._fill, step, strict=True)]

    def report(
        self, workload: str = "", *, max_lag_s: float | None = None, interrupted: bool = False
    ) -> Report:
        """What was measured so far; any thread may ask, at any time."""
        with self._lock:
            kept = (self._gaps, self._firsts, self._queued, self._ends)
            gaps, firsts, queued, ends = (s.window(-math.inf, math.inf) for s in kept)
            tokens, budget, rows, cap = self._fill
            started = self._began < self._ended
            return Report(
                workload=workload,
                sent=self._sent,
                n=self._good,
                errors=dict(self._errors),
                unfinished=self._journeys.waiting + self._journeys.running,
                duration_s=self._ended - self._began if started else 0.0,
                ttft=Summary.of(firsts[:, 1]),
                itl=Summary.of(gaps[:, 1]),
                tpot=Summary.of(ends[:, 2]),
                e2e=Summary.of(ends[:, 1]),
                queue=Summary.of(queued[:, 1]),
                prompt_tokens=self._prompt_tokens,
                generated_tokens=self._tokens,
                batch_fill=tokens / budget if budget else None,
                seq_fill=rows / cap if cap else None,
                max_lag_s=max_lag_s,
                interrupted=interrupted,
                capped=any(s.oldest() is not None for s in kept),
            )
