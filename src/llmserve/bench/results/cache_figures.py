"""What the response cache did in a run: how many requests it answered, and how soon.

A hit computes nothing, so it is in no other figure of a report: TTFT, ITL, tokens and requests per
second are of what the engine served.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from llmserve.core.quantities import duration
from llmserve.observe.window import Samples, Summary

_MOST = 524_288


class CacheFigures(msgspec.Struct, frozen=True, kw_only=True):
    hits: Summary = Summary()
    """Scheduled arrival to the whole reply, of requests that the cache answered."""
    misses: int = 0
    """Requests that were served by the engine; the report's other figures are of these."""
    joined: int | None = None
    """Of the hits, those that waited for an equal request in the engine; None where that cannot be
    seen, as over HTTP."""
    failed: int = 0
    """Requests that waited for an equal one which had no good end."""

    @property
    def share(self) -> float:
        """Hits of all requests that were answered."""
        answered = self.hits.n + self.misses
        return self.hits.n / answered if answered else 0.0

    def warnings(self) -> list[str]:
        if self.failed:
            return [f"not served: {self.failed} that waited for an equal request, which failed"]
        return []


class CacheLog:
    """Collects the figures of one run, request by request."""

    def __init__(self, *, sees_joined: bool) -> None:
        self._latencies = Samples(2, _MOST)
        self._joined: int | None = 0 if sees_joined else None
        self.hits = self.misses = self.failed = 0

    def hit(self, arrival: float, ended: float, *, joined: bool = False) -> None:
        self.hits += 1
        self._latencies.append(ended, ended - arrival)
        if self._joined is not None:
            self._joined += joined

    def figures(self) -> CacheFigures:
        seen = self._latencies.window(float("-inf"), float("inf"))
        return CacheFigures(
            hits=Summary.of(seen[:, 1]), misses=self.misses, joined=self._joined,
            failed=self.failed,
        )  # fmt: skip


def cache_words(found: Sequence[CacheFigures]) -> list[str]:
    """A line of one run or of several: hits, what they took at the middle, and what they waited
    for; no line where there was no cache."""
    if not found:
        return []
    hits, misses = sum(each.hits.n for each in found), sum(each.misses for each in found)
    if not hits:
        return [f"response cache: no hit in {misses:,} requests"]
    joined = [each.joined for each in found if each.joined is not None]
    waited = f", {sum(joined):,} of them waited for an equal request" if any(joined) else ""
    words = f"response cache: {hits:,} of {hits + misses:,} requests were hits{waited}"
    if len(found) == 1:
        p50, p95 = found[0].hits.p50, found[0].hits.p95
        words += f"; they took {duration(p50)} at p50, {duration(p95)} at p95"
    return [f"{words}; all other figures are of the misses"]
