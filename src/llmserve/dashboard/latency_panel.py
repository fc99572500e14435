"""`Why` as a page draws it: sentences, and a bar per figure and value of the knob that binds."""

from __future__ import annotations

from dataclasses import dataclass

from llmserve.observe.attribution_report import COLOURS, LABELS, Why, bars, sentences

EXPLAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class LatencyPanel:
    lines: tuple[str, ...] = ()
    bars: tuple[tuple[str, str, float, tuple[tuple[str, float, str], ...]], ...] = ()
    """Figure, the binding knob's value where there were several, p95 in ms, and its parts: label,
    ms, colour."""

    @classmethod
    def of(cls, why: Why) -> LatencyPanel:
        drawn = tuple(
            (
                metric,
                value,
                round(1e3 * p95_s, 3),
                tuple(
                    (LABELS[p.cause], round(1e3 * p.seconds, 3), COLOURS[p.cause])
                    for p in parts
                    if p.share >= 0.005
                ),
            )
            for metric, value, p95_s, parts in bars(why)
        )
        return cls(tuple(sentences(why)), drawn)

    def as_json(self) -> dict[str, object]:
        return {"kind": "why", "lines": self.lines, "bars": self.bars}
