"""What the steps of a tape computed and took, and what the front added before and after them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llmserve.core.types import StepRecord, StepRow
from llmserve.engines.simulator.step_model import StepWork
from llmserve.observe.requests import RequestRow


@dataclass
class ObservedSteps:
    """One entry of `works` and `seconds` per step that can be told."""

    works: list[StepWork] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """From the end of the step before, where there was work all the while; else its own time."""
    indices: list[int] = field(default_factory=list)
    """Places of the steps in the tape, by which neighbours are known."""
    gaps_s: list[float] = field(default_factory=list)
    """From a step's end to the start of the next, where there was work all the while."""
    arrivals_s: list[float] = field(default_factory=list)
    """From the arrival of requests that nothing held back to their dispatch."""
    dispatches_s: list[float] = field(default_factory=list)
    """From the dispatch of requests that found the engine idle to the start of their step."""
    deliveries_s: list[float] = field(default_factory=list)
    """From the end of the step of a first token to its delivery."""
    drafts: int = 0
    """Tokens that speculation proposed."""

    def extend(self, records: Sequence[StepRecord], rows: Iterable[RequestRow]) -> None:
        """Read a tape, whose records are in order, and the log of its requests."""
        _Reader(self, {row.id: row for row in rows}).read(records)


class _Reader:
    """Follows each request through the steps: a record says how many tokens, not where."""

    def __init__(self, found: ObservedSteps, rows: dict[str, RequestRow]) -> None:
        self._found, self._rows = found, rows
        self._contexts: dict[str, int] = {}
        """Tokens of a request whose KV is stored, where that is known."""
        self._seen: set[str] = set()
        """Requests that had a row, or were running before the tape began."""
        self._before: StepRecord | None = None

    def read(self, records: Sequence[StepRecord]) -> None:
        offset = len(self._found.indices) and self._found.indices[-1] + 2
        for place, record in enumerate(records):
            self._one(record, offset + place)
        for row in self._rows.values():
            if row.queue_s is not None and row.hold_reason is None:
                self._found.arrivals_s.append(max(0.0, row.queue_s))

    def _one(self, record: StepRecord, place: int) -> None:
        before, found = self._before, self._found
        if before is not None and record.index != before.index + 1:  # some are missing
            before = None
            self._contexts.clear()
        self._before = record
        found.drafts += record.draft_tokens
        for request_id in record.preempted:
            self._contexts.pop(request_id, None)
        work = self._work(record)
        self._deliveries(record)
        end = record.start_s + record.duration_s
        seconds = record.duration_s
        if before is not None and before.running:
            ended = before.start_s + before.duration_s
            found.gaps_s.append(max(0.0, record.start_s - ended))
            if record.start_s != ended:
                seconds = end - ended
        elif before is not None and not before.waiting:
            self._dispatch(record)
        told = before is not None or record.index == 0
        if not told or work is None or seconds <= 0:
            return
        found.works.append(work)
        found.seconds.append(seconds)
        found.indices.append(place)

    def _work(self, record: StepRecord) -> StepWork | None:
        """None where a request's context is not known."""
        new = [row for row in record.rows if row.request_id not in self._contexts]
        self._admit(record, new)
        decodes = prefills = tokens = reads = pairs = 0
        known = True
        for row in record.rows:
            start = self._contexts.get(row.request_id)
            if start is None:
                known = False
                continue
            end = self._contexts[row.request_id] = start + row.tokens
            reads += end
            if row.kind == "prefill":
                prefills += 1
                tokens += row.tokens
                pairs += row.tokens * end
            else:
                decodes += row.tokens
        return StepWork(decodes, prefills, tokens, reads, pairs) if known else None

    def _admit(self, record: StepRecord, new: list[StepRow]) -> None:
        """Where requests that are new in this step begin: behind what was cached of them."""
        for row in new:
            request_id, first = row.request_id, row.request_id not in self._seen
            self._seen.add(request_id)
            if row.kind != "prefill":
                continue
            known = self._rows.get(request_id)
            if not record.cached_tokens:
                start: int | None = 0
            elif len(new) == 1:
                start = record.cached_tokens
            else:
                start = known.cached_tokens if first and known is not None else None
            if start is not None:
                self._contexts[request_id] = start

    def _dispatch(self, record: StepRecord) -> None:
        for row in record.rows:
            known = self._rows.get(row.request_id)
            if known is None or known.queue_s is None or known.preemptions:
                continue
            waited = record.start_s - known.arrival - known.queue_s
            if waited >= -1e-9:
                self._found.dispatches_s.append(max(0.0, waited))

    def _deliveries(self, record: StepRecord) -> None:
        end = record.start_s + record.duration_s
        for row in record.rows:
            known = self._rows.get(row.request_id)
            if row.kind != "prefill" or known is None or known.ttft_s is None:
                continue
            whole = self._contexts.get(row.request_id) == known.prompt_tokens
            if whole and not known.preemptions:
                self._found.deliveries_s.append(max(0.0, known.arrival + known.ttft_s - end))
