"""`Why` as a page draws it: sentences, and one bar per figure."""

from __future__ import annotations

from dataclasses import dataclass

from llmserve.observe.attribution_report import COLOURS, LABELS, Why, sentences

EXPLAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class LatencyPanel:
    lines: tuple[str, ...] = ()
    bars: tuple[tuple[str, float, tuple[tuple[str, float, str], ...]], ...] = ()
    """Figure, its p95 in ms, and its parts: label, ms, colour."""

    @classmethod
    def of(cls, why: Why) -> LatencyPanel:
        bars = tuple(
            (
                b.metric,
                round(1e3 * b.p95_s, 3),
                tuple(
                    (LABELS[p.cause], round(1e3 * p.seconds, 3), COLOURS[p.cause])
                    for p in b.parts
                    if p.share >= 0.005
                ),
            )
            for b in (why.ttft, why.itl)
            if b is not None
        )
        return cls(tuple(sentences(why)), bars)

    def as_json(self) -> dict[str, object]:
        return {"kind": "why", "lines": self.lines, "bars": self.bars}
