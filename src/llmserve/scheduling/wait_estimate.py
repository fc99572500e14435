"""How fast places come free, and how soon a first token follows: what waits are predicted from.

By Little's law c places that are each held for S seconds come free c/S times a second. Measured
so, and not by counting ends, idle hours do not make the house look slow.
"""

from __future__ import annotations

from collections import deque

_SAMPLES = 64
_FEWEST_ERRORS = 8
_SURE = 0.9
"""Of ten predictions nine shall come true."""


class _Mean:
    """Of the latest samples."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_SAMPLES)

    def add(self, value: float) -> None:
        self._values.append(value)

    @property
    def value(self) -> float | None:
        return sum(self._values) / len(self._values) if self._values else None


class WaitEstimate:
    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._unborn: set[str] = set()
        self._sum_since = 0.0
        self._holds = _Mean()
        self._firsts = _Mean()
        self._predicted: dict[str, float] = {}
        self._errors: deque[float] = deque(maxlen=_SAMPLES)
        self.margin_s = 0.0
        """What predictions of waiting must be raised by, as they lately proved wrong."""

    def predicted(self, request_id: str, at: float) -> None:
        """A request that must wait is expected to have its first token then."""
        self._predicted[request_id] = at

    def dropped(self, request_id: str) -> None:
        """It was given up while waiting."""
        self._predicted.pop(request_id, None)

    def dispatched(self, request_id: str, now: float) -> None:
        self._since[request_id] = now
        self._sum_since += now
        self._unborn.add(request_id)

    def first_token(self, request_id: str, now: float) -> None:
        if request_id in self._unborn:
            self._unborn.discard(request_id)
            self._firsts.add(now - self._since[request_id])
            expected = self._predicted.pop(request_id, None)
            if expected is not None:
                self._errors.append(now - expected)
                if len(self._errors) >= _FEWEST_ERRORS:
                    errors = sorted(self._errors)
                    self.margin_s = max(0.0, errors[int(_SURE * len(errors))])

    def finished(self, request_id: str, now: float) -> None:
        since = self._since.pop(request_id)
        self._unborn.discard(request_id)
        self._predicted.pop(request_id, None)
        self._sum_since = self._sum_since - since if self._since else 0.0
        self._holds.add(max(0.0, now - since))

    def per_s(self, now: float) -> float | None:
        """Places that come free each second while all are held as now; None where unknown.

        Those still held count by their age too, so that a house whose first requests take long
        is not thought fast until the first of them ends.
        """
        held = len(self._since)
        if held == 0:
            hold = self._holds.value
            return 1 / hold if hold else None
        age = now - self._sum_since / held
        hold = max(self._holds.value or 0.0, age)
        return held / hold if hold > 0 else None

    @property
    def first_token_s(self) -> float:
        """From hand-over to the first token, lately."""
        return self._firsts.value or 0.0
