"""A faster form of the model that serves, proven meanwhile in a thread of its own.

The plain form answers from the first moment. What is timed to choose among forms is timed while no
step runs; the form is changed between two steps.
"""

from __future__ import annotations

import gc
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from llmserve.engines.torch.model.open_model import (
    EACH_START,
    DirectChoices,
    OpenedModel,
    Unproven,
    prove,
)
from llmserve.engines.torch.model.race import give_back
from llmserve.engines.torch.model.select_forward import ReportStage
from llmserve.engines.torch.model.weights import Weights
from llmserve.engines.torch.step_loop import StepLoop

LATEST_S = 10.0
"""For how long the change waits in half precision for a moment without requests: two forms round
apart, so that of a reply under way a near-tie may fall the other way."""
QUIET_S = 60.0
"""At most, without a step."""


class LateForm:
    """`begin` it; then `settle` between any two steps, until that says what came of it."""

    def __init__(self, unproven: Unproven, report: ReportStage, wake: Callable[[], None]) -> None:
        """wake: ends the wait for a message, from any thread."""
        self._unproven, self._report, self._wake = unproven, report, wake
        self._quiet_from, self._quiet_to = threading.Event(), threading.Event()
        self._wanted = threading.Event()
        self._found: OpenedModel | None = None
        self._over = threading.Event()
        self._over_at = self._began_at = 0.0

    def begin(self) -> None:
        self._began_at = time.monotonic()
        threading.Thread(target=self._prove, name="late-form", daemon=True).start()

    def asks(self, runner: StepLoop) -> bool:
        """Whether `settle` has something to do now. True before `wake` is called for it."""
        return self._wanted.is_set() or (self._over.is_set() and self._may_change(runner))

    def settle(self, runner: StepLoop) -> dict[str, str] | None:
        """What changed of the model's details, once there is nothing more to do."""
        if self._wanted.is_set():
            self._wanted.clear()
            self._quiet_from.set()
            self._quiet_to.wait(QUIET_S)
        if not self._over.is_set() or not self._may_change(runner):
            return None
        found, self._found = self._found, None
        if found is None:
            return {"proof": f"{EACH_START}; it failed at this one"}
        runner.compute_as(found.model)
        gc.collect()
        give_back()
        beside = time.monotonic() - self._began_at
        return {
            "forward": found.model.path,
            "proof": f"{found.proof}; the plain form served for {beside:.1f} s of it",
        }

    def _may_change(self, runner: StepLoop) -> bool:
        exact = self._unproven.facts.geometry.dtype == torch.float32
        late = time.monotonic() - self._over_at > LATEST_S
        return exact or runner.idle or late

    def _prove(self) -> None:
        one = self._unproven
        try:
            torch.set_num_threads(one.options.thread_count)  # of this thread's own pool
            ways = QuietChoices(
                self._quiet, one.options, self._report, one.folder, one.facts, one.expected
            )
            self._found = prove(one, ways)
        except Exception:  # the plain form goes on
            traceback.print_exc()
        self._over_at = time.monotonic()
        self._over.set()
        self._wake()

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """No step runs meanwhile."""
        self._quiet_from.clear()
        self._quiet_to.clear()
        self._wanted.set()
        self._wake()
        self._quiet_from.wait()
        try:
            yield
        finally:
            self._quiet_to.set()


class QuietChoices(DirectChoices):
    """What is timed is timed in a quiet moment."""

    def __init__(self, quiet: Callable[[], AbstractContextManager[None]], *rest: Any) -> None:
        self._quiet = quiet
        super().__init__(*rest)

    def wide(self) -> int | None:
        with self._quiet():
            return super().wide()

    def _race(self, weights: Weights, wide: int | None) -> None:
        with self._quiet():
            super()._race(weights, wide)
