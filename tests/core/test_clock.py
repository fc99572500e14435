from __future__ import annotations

import asyncio

import pytest

from llmserve.core.clock import MonotonicClock, VirtualClock


def test_an_hour_of_virtual_sleep_ends_exactly_then() -> None:
    clock = VirtualClock()

    async def main() -> list[float]:
        async def tick(gap: float) -> float:
            await clock.sleep_until(gap)
            return clock.now()

        return list(await asyncio.gather(tick(3600.0), tick(0.25), tick(1800.5)))

    assert clock.run(main()) == pytest.approx([3600.0, 0.25, 1800.5], abs=1e-9)


def test_timers_of_one_time_fire_in_the_order_in_which_they_were_set() -> None:
    clock, said = VirtualClock(), list[int]()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in range(50):
            loop.call_at(0.1 + 0.2, said.append, number)
            loop.call_at(0.1, said.append, -1).cancel()
        await clock.sleep_until(1e9 + 0.1)

    clock.run(main())
    assert said == list(range(50))
    assert clock.now() == 1e9 + 0.1  # to the last bit, however far


def test_virtual_time_says_when_everything_waits_for_nothing() -> None:
    async def stuck() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="no timer is set"):
        VirtualClock().run(stuck())


def test_virtual_time_runs_inside_a_cell_whose_thread_has_a_loop() -> None:
    async def cell() -> float:
        clock = VirtualClock()
        clock.run(clock.sleep_until(5.0))
        return clock.now()

    assert asyncio.run(cell()) == pytest.approx(5.0)


def test_the_real_clock_never_returns_before_its_time() -> None:
    clock = MonotonicClock()

    async def main() -> float:
        when = clock.now() + 0.01
        await clock.sleep_until(when)
        return clock.now() - when

    assert asyncio.run(main()) >= -0.001
