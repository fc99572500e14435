"""The rows behind the charts, bounded, and what was done to the knobs meanwhile.

A row's position counts from the first row ever, so a reader that remembers a position knows what
it lacks even after old rows were let go.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from llmserve.core.events import Event, KnobsChanged, KnobsSatisfied
from llmserve.core.knobs import KnobValue

CAPACITY = 3000
MARKS = 200


class Series:
    """Appended at the end, forgotten at the front. Not for several threads at once."""

    def __init__(self, columns: int, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        # twice the room: rows are moved once per `capacity` appends, and slices stay contiguous
        self._times = np.empty(2 * capacity, np.float64)
        self._values = np.empty((2 * capacity, columns), np.float32)
        self._end = 0
        self.total = 0

    @property
    def oldest(self) -> int:
        return self.total - min(self._end, self._capacity)

    def append(self, t: float, values: list[float]) -> None:
        if self._end == 2 * self._capacity:
            self._times[: self._capacity] = self._times[self._capacity :]
            self._values[: self._capacity] = self._values[self._capacity :]
            self._end = self._capacity
        self._times[self._end] = t
        self._values[self._end] = values
        self._end += 1
        self.total += 1

    def since(self, position: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Copies of the kept rows from `position` on."""
        count = self.total - max(position, self.oldest)
        kept = slice(self._end - count, self._end)
        return self._times[kept].copy(), self._values[kept].copy()


@dataclass(frozen=True, slots=True)
class Mark:
    """One knob change, drawn as a line across every panel."""

    id: int
    revision: int
    """Grows whenever any mark is new or learns something; a reader asks for later ones."""
    t: float
    source: str
    step: int | None
    changed: dict[str, tuple[KnobValue, KnobValue]]
    clamped: tuple[str, ...] = ()
    satisfied: dict[str, int] = field(default_factory=dict)
    """Lowered caps, and the step from which all that runs keeps them."""

    def as_json(self, t0: float) -> dict[str, object]:
        return {
            "id": self.id,
            "t": self.t - t0,
            "source": self.source,
            "step": self.step,
            "changed": {name: list(values) for name, values in self.changed.items()},
            "clamped": list(self.clamped),
            "satisfied": self.satisfied,
        }


class Marks:
    """A fold over events that keeps the newest knob changes."""

    def __init__(self) -> None:
        self._marks: deque[Mark] = deque(maxlen=MARKS)
        self.revision = 0

    def fold(self, event: Event) -> None:
        if isinstance(event, KnobsChanged):
            self.revision += 1
            self._marks.append(
                Mark(
                    id=self.revision,
                    revision=self.revision,
                    t=event.t,
                    source=event.source,
                    step=event.step,
                    changed=event.changed,
                    clamped=event.clamped,
                )
            )
        elif isinstance(event, KnobsSatisfied):
            self._satisfy(event)

    def _satisfy(self, event: KnobsSatisfied) -> None:
        for i in reversed(range(len(self._marks))):
            mark = self._marks[i]
            if event.name in mark.changed:
                self.revision += 1
                satisfied = {**mark.satisfied, event.name: event.step}
                self._marks[i] = replace(mark, revision=self.revision, satisfied=satisfied)
                return

    def since(self, revision: int) -> list[Mark]:
        return [mark for mark in self._marks if mark.revision > revision]
