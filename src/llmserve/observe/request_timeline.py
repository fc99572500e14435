"""Timelines of the unfinished requests, built from their events."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from llmserve.core.events import Dispatched, FirstToken, Submitted, TokensEmitted
from llmserve.core.types import StepRecord

_ENDED = 4096
"""Ids of so many that ended last are remembered: more than one step holds."""


class RequestTimeline(msgspec.Struct, kw_only=True, gc=False):
    """One request from its submission on. Times are the events' own."""

    tenant: str
    priority: int
    prompt_tokens: int
    max_tokens: int
    submitted: float
    dispatched: float | None = None
    first: float | None = None
    """When its first token came."""
    last: float | None = None
    """When its latest token came."""
    tokens: int = 0
    cached_tokens: int = 0

    @property
    def queue_s(self) -> float | None:
        return None if self.dispatched is None else self.dispatched - self.submitted

    @property
    def ttft_s(self) -> float | None:
        return None if self.first is None else self.first - self.submitted

    def tpot_s(self, end: float, tokens: int) -> float | None:
        """Seconds per token after the first; None where there is none after the first."""
        return None if self.first is None or tokens < 2 else (end - self.first) / (tokens - 1)


class RequestTimelines:
    """The unfinished requests. At most as many as admission lets wait and run at once.

    Events of a request whose submission was not seen (a fold attached late, a trace that begins
    in the middle) are passed over: there is nothing to measure from.
    """

    def __init__(self) -> None:
        self._live: dict[str, RequestTimeline] = {}
        self._ended: dict[str, None] = {}  # in the order of their ends
        self.running = 0

    @property
    def waiting(self) -> int:
        return len(self._live) - self.running

    def submit(self, event: Submitted) -> None:
        self._live[event.request_id] = RequestTimeline(
            tenant=event.tenant,
            priority=event.priority,
            prompt_tokens=event.prompt_tokens,
            max_tokens=event.max_tokens,
            submitted=event.t,
        )

    def dispatch(self, event: Dispatched) -> RequestTimeline | None:
        timeline = self._live.get(event.request_id)
        if timeline is None or timeline.dispatched is not None:
            return None
        timeline.dispatched = event.t
        self.running += 1
        return timeline

    def first_token(self, event: FirstToken) -> RequestTimeline | None:
        timeline = self._live.get(event.request_id)
        if timeline is None or timeline.first is not None:
            return None
        timeline.first = event.t
        timeline.cached_tokens = event.cached_tokens
        return timeline

    def emit(self, event: TokensEmitted) -> Iterator[tuple[int, float | None]]:
        """Of each request that got tokens how many, and the gap since those before; None for its
        first ones. Use it up.

        Tokens that arrive together make one gap, as in vLLM: a reader waited once for them.
        """
        live, t = self._live, event.t
        for request_id, n in event.counts.items():
            timeline = live.get(request_id)
            if timeline is None:
                yield n, None
                continue
            before, timeline.last = timeline.last, t
            timeline.tokens += n
            yield n, None if before is None else t - before

    def end(self, request_id: str) -> RequestTimeline | None:
        timeline = self._live.pop(request_id, None)
        if timeline is not None and timeline.dispatched is not None:
            self.running -= 1
            self._ended[request_id] = None
            if len(self._ended) > _ENDED:
                del self._ended[next(iter(self._ended))]
        return timeline

    def kv_in_use(self, last: StepRecord) -> int:
        """KV room taken, in tokens, after the `last` step: as it left it, and none once nothing
        runs and all who were in it have ended. No step reports what an abort gave back."""
        idle = not self.running and bool(last.rows)
        if idle and all(row.request_id in self._ended for row in last.rows):
            return 0
        return last.kv_used_tokens
