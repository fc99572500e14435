"""How threads wait for each other within a step: awake for a moment, then asleep.

Who spins for long burns the core of a neighbour, and maybe that of the thread it waits for.
"""

from __future__ import annotations

from typing import Any

from numba import types

from llmserve.engines.torch.cpu_kernels.intrinsics import compiled, fetch_add, load_acquire, pause
from llmserve.engines.torch.cpu_kernels.plan import (
    ABANDONED,
    ARRIVED,
    ASLEEP,
    NAP,
    NAPS,
    SPINS,
    THREADS,
)
from llmserve.engines.torch.cpu_kernels.waiting import FUTEX_NUMBER

WAIT_PRIVATE, WAKE_PRIVATE, ALL = 128, 129, 1 << 30


def by_futex(number: int) -> tuple[Any, Any]:
    """doze(at, seen, limit): sleeps until woken, unless the word at `at` is no more `seen`, and no
    longer than the timespec at `limit`. And rouse(at)."""
    call = types.ExternalFunction("syscall", types.int64(*[types.int64] * 5))

    @compiled
    def doze(at: int, seen: int, limit: int) -> None:
        call(number, at, WAIT_PRIVATE, seen, limit)

    @compiled
    def rouse(at: int) -> None:
        call(number, at, WAKE_PRIVATE, ALL, 0)

    return doze, rouse


def by_polling() -> tuple[Any, Any]:
    """The same where there is no futex: short naps, from which nobody need be roused."""
    usleep = types.ExternalFunction("usleep", types.int32(types.uint32))

    @compiled
    def doze(at: int, seen: int, limit: int) -> None:
        usleep(50)

    @compiled
    def rouse(at: int) -> None:
        pass

    return doze, rouse


doze, rouse = by_polling() if FUTEX_NUMBER is None else by_futex(FUTEX_NUMBER)


@compiled
def meet(plan: Any, phase: int) -> bool:
    """Returns when all threads have come this far; False when one gave up. The count of those who
    came only grows within a step."""
    at, gone = plan[ARRIVED], plan[ABANDONED]
    want = (phase + 1) * plan[THREADS]
    if fetch_add(at, 1) + 1 >= want:
        # Who falls asleep counts itself before it looks a last time: one of the two is seen.
        if fetch_add(plan[ASLEEP], 0) > 0:
            rouse(at)
        return bool(load_acquire(gone) == 0)
    for _ in range(plan[SPINS]):
        if load_acquire(at) >= want:
            return bool(load_acquire(gone) == 0)
        pause()
    fetch_add(plan[ASLEEP], 1)
    left = plan[NAPS]
    seen = fetch_add(at, 0)
    while seen < want and left > 0 and load_acquire(gone) == 0:
        doze(at, seen, plan[NAP])
        left -= 1
        seen = fetch_add(at, 0)
    fetch_add(plan[ASLEEP], -1)
    if seen < want:
        fetch_add(gone, 1)
    return bool(load_acquire(gone) == 0)


def spin(at: int, turns: int) -> int:
    """What `meet` does while it is awake, to be timed; the word at `at` is 0. Turns left."""
    for turn in range(turns):
        if load_acquire(at) > 0:
            return turns - turn
        pause()
    return 0
