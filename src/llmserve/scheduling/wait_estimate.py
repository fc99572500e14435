"""How fast slots come free, and how soon a first token follows: what waits are predicted from.

By Little's law c slots that are each taken for S seconds come free c/S times a second. Measured
so, and not by counting ends, idle hours do not make the engine look slow.
"""

from __future__ import annotations

from collections import deque

from llmserve.scheduling.entry import Entry

_SAMPLES = 64
_FEWEST_ERRORS = 8
_SURE = 0.9
"""Of ten predictions nine shall come true."""


class _Mean:
    """The mean of the latest samples."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_SAMPLES)

    def add(self, value: float) -> None:
        self._values.append(value)

    @property
    def value(self) -> float | None:
        return sum(self._values) / len(self._values) if self._values else None


class WaitEstimate:
    """Learns from requests as they are dispatched, get their first token and finish."""

    def __init__(self) -> None:
        self._active = 0
        self._sum_dispatched = 0.0  # over the active
        self._slot_times = _Mean()
        self._firsts = _Mean()
        self._errors: deque[float] = deque(maxlen=_SAMPLES)
        self.margin_s = 0.0
        """What predictions of waiting must be raised by, as they lately proved wrong."""

    def dispatched(self, entry: Entry) -> None:
        self._active += 1
        self._sum_dispatched += entry.dispatched_s

    def first_token(self, entry: Entry, now: float) -> None:
        self._firsts.add(now - entry.dispatched_s)
        if entry.first_token_due_s is not None:
            self._errors.append(now - entry.first_token_due_s)
            if len(self._errors) >= _FEWEST_ERRORS:
                errors = sorted(self._errors)
                self.margin_s = max(0.0, errors[int(_SURE * len(errors))])

    def finished(self, entry: Entry, now: float) -> None:
        self._active -= 1
        since = entry.dispatched_s
        self._sum_dispatched = self._sum_dispatched - since if self._active else 0.0
        self._slot_times.add(max(0.0, now - since))

    def per_s(self, now: float) -> float | None:
        """Slots that come free each second while as many are taken as now; None where unknown.

        Those still taken count by their age too, so that an engine whose first requests take long
        is not thought fast until the first of them ends.
        """
        if self._active == 0:
            mean = self._slot_times.value
            return 1 / mean if mean else None
        age = now - self._sum_dispatched / self._active
        slot_s = max(self._slot_times.value or 0.0, age)
        return self._active / slot_s if slot_s > 0 else None

    @property
    def first_token_s(self) -> float:
        """From dispatch to the first token, lately."""
        return self._firsts.value or 0.0
