"""The interpreter's settings that a session changes while it serves."""

from __future__ import annotations

from dataclasses import dataclass

from llmserve.core.validation import real, whole


@dataclass(frozen=True, slots=True)
class Switches:
    """Interpreter settings to change while serving; None leaves one alone."""

    switch_interval_s: float | None
    gc_threshold: int | None

    @classmethod
    def read(cls, interval_s: float | None, threshold: int | None) -> Switches:
        """ValueError for what the interpreter would not take, before anything is started."""
        return cls(
            None if interval_s is None else real("switch_interval_s", interval_s, 1e-6, 1000, "s"),
            None if threshold is None else whole("gc_threshold", threshold, 1, 2**31 - 1),
        )
