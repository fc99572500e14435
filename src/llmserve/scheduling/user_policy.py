"""A policy of the user's own: `function(waiting, ledger, knobs) -> id to dispatch next`.

It may look at all who wait, so it costs what it costs; it is tried before it is let in, timed
while it serves, and removed when it fails.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from llmserve.core.knobs import Knobs
from llmserve.core.types import Request, SamplingParams
from llmserve.scheduling.ledger import Ledger

_TRIALS = 100


class PolicyError(ValueError):
    """A user's policy cannot be used; the message says what it did."""


class TenantService(NamedTuple):
    """The service of one tenant that has waiting requests."""

    served: float
    """Weighted tokens it was given so far, over its weight."""
    waiting: int
    active: int


class LedgerView(NamedTuple):
    """The tenants' service, as a user's policy may read it."""

    now: float
    tenants: Mapping[str, TenantService]

    @classmethod
    def of(cls, ledger: Ledger, now: float) -> LedgerView:
        return cls(
            now,
            MappingProxyType(
                {
                    tenant: TenantService(usage.counter, usage.waiting, usage.active)
                    for tenant, usage in ledger.waiting.items()
                }
            ),
        )


Choice = Callable[[tuple[Request, ...], LedgerView, Knobs], str]


class UserPolicy:
    """The function with its name and its times; whatever it raises becomes a PolicyError."""

    def __init__(self, function: Choice, timer: Callable[[], float]) -> None:
        self.name: str = getattr(function, "__name__", type(function).__name__)
        self._function = function
        self._timer = timer
        self.picks = 0
        self.seconds = 0.0
        self.slowest_s = 0.0

    def choose(self, waiting: tuple[Request, ...], ledger: LedgerView, knobs: Knobs) -> Request:
        """One of `waiting`, which is not empty; PolicyError where the function gives no such."""
        started = self._timer()
        try:
            chosen: Any = self._function(waiting, ledger, knobs)
        except BaseException as error:  # whatever a user's code may raise: `exit()` too
            # a message of its own may fail as well
            said = "".join(traceback.format_exception_only(error)).strip()
            raise PolicyError(f"{self.name} raised {said}") from error
        spent = self._timer() - started
        self.picks += 1
        self.seconds += spent
        self.slowest_s = max(self.slowest_s, spent)
        if isinstance(chosen, str):  # an array compared with text is no yes or no
            for request in waiting:
                if request.id == chosen:
                    return request
        shown = repr(chosen) if isinstance(chosen, str | None) else f"a {type(chosen).__name__}"
        raise PolicyError(f"{self.name} returned {shown}, which is not the id of a waiting request")

    def __str__(self) -> str:
        mean = self.seconds / self.picks if self.picks else 0.0
        times = f"{mean * 1e3:.3f} ms each, slowest {self.slowest_s * 1e3:.1f} ms"
        return f"{self.name}: {self.picks} picks, {times}"


def try_out(function: Choice) -> None:
    """Call it on many small queues; PolicyError with the first that it does not stand.

    It must give the id of a request that waits whenever one does, the same one when asked again,
    and leave alone what it was shown.
    """
    policy = UserPolicy(function, lambda: 0.0)
    rng = random.Random(4)
    for trial in range(_TRIALS):
        waiting, view, knobs = _case(rng, 1 + trial % 12)
        before = repr((waiting, view, knobs))
        chosen = policy.choose(waiting, view, knobs)
        if repr((waiting, view, knobs)) != before:
            raise PolicyError(f"{policy.name} changed what it was shown: {before}")
        if policy.choose(waiting, view, knobs) is not chosen:
            raise PolicyError(f"{policy.name} chose differently when asked again: {before}")


def _case(
    rng: random.Random, count: int
) -> tuple[tuple[Request, ...], LedgerView, Knobs]:
    now = rng.uniform(0, 100)
    waiting = tuple(
        Request(
            id=f"r{rng.getrandbits(32):x}-{n}",
            prompt_ids=(1,) * rng.randint(1, 50),
            sampling=SamplingParams(max_tokens=rng.randint(1, 50)),
            arrival=now - 10 + 10 * n / count,
            priority=rng.randint(-2, 2),
            tenant=rng.choice("abc"),
        )
        for n in range(count)
    )
    tenants = {
        tenant: TenantService(
            rng.uniform(0, 1000), sum(r.tenant == tenant for r in waiting), rng.randint(0, 3)
        )
        for tenant in sorted({request.tenant for request in waiting})
    }
    return waiting, LedgerView(now, MappingProxyType(tenants)), Knobs(policy="custom")
