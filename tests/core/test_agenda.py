"""The agenda goes through virtual time as asyncio's loop does on a virtual clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core.agenda import Agenda, AgendaTimer
from llmserve.core.clock import VirtualClock
from support.examples import examples

Said = list[tuple[float, int]]


def on_a_loop(seed: int) -> Said:
    clock, said = VirtualClock(), Said()

    async def main() -> None:
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def at(when: float, call: Callable[[], None]) -> Callable[[], None]:
            return loop.call_at(when, call).cancel

        play(random.Random(seed), clock.now, at, loop.call_soon, said, over.set)
        await over.wait()

    clock.run(main())
    return said


def on_an_agenda(seed: int) -> Said:
    agenda, said = Agenda(), Said()

    def at(when: float, call: Callable[[], None]) -> Callable[[], None]:
        return agenda.at(when, call).cancel

    def stop() -> None:
        agenda.stopped = True

    play(random.Random(seed), agenda.now, at, agenda.soon, said, stop)
    agenda.run_to_end()
    return said


def play(
    rng: random.Random,
    now: Callable[[], float],
    at: Callable[[float, Callable[[], None]], Callable[[], None]],
    soon: Callable[[Callable[[], None]], object],
    said: Said,
    over: Callable[[], None],
) -> None:
    """Callbacks that ask for more of them, soon or at a time, past ones and equal ones among
    them, and that take some back."""
    cancels: list[Callable[[], None]] = []
    count = 0

    def note(number: int) -> None:
        said.append((now(), number))
        if len(said) < 120:
            more()
        if rng.random() < 0.2 and cancels:
            cancels.pop(rng.randrange(len(cancels)))()

    def more() -> None:
        nonlocal count
        for _ in range(rng.choice((1, 1, 2))):
            count += 1
            number = count
            if rng.random() < 0.4:
                soon(partial(note, number))
            else:
                when = rng.choice((now(), 0.0, now() + 1.0, round(now() + rng.random(), 1)))
                cancels.append(at(when, partial(note, number)))

    for _ in range(4):
        more()
    at(1e6, over)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=examples(60))
def test_it_calls_in_the_order_and_at_the_times_of_asyncios_loop(seed: int) -> None:
    assert on_an_agenda(seed) == on_a_loop(seed)


def test_a_timer_set_anew_fires_once_at_its_last_time() -> None:
    agenda, said = Agenda(), list[float]()
    timer = AgendaTimer(lambda: said.append(agenda.now()), ())
    for when in (5.0, 2.0, 7.0, 3.0, 3.0):
        agenda.reset(timer, when)
    agenda.at(4.0, agenda.reset, timer, 6.5)
    agenda.at(9.0, setattr, agenda, "stopped", True)
    agenda.run_to_end()
    assert said == [3.0, 6.5]


def test_a_timer_taken_back_does_not_fire_and_is_no_horizon() -> None:
    agenda, said = Agenda(), list[float]()
    agenda.at(1.0, said.append, 1.0).cancel()
    agenda.at(2.0, setattr, agenda, "stopped", True)
    assert agenda.horizon == 2.0
    agenda.run_to_end()
    assert (said, agenda.now()) == ([], 2.0)


def test_it_says_when_nothing_is_left_to_happen() -> None:
    agenda = Agenda()
    agenda.at(1.0, lambda: None)
    with pytest.raises(RuntimeError, match="no timer is set"):
        agenda.run_to_end()


def test_after_so_many_turns_is_behind_what_is_asked_for_sooner() -> None:
    agenda, said = Agenda(), list[int]()
    agenda.after(3, said.append, 3)
    agenda.after(1, said.append, 1)
    agenda.soon(agenda.soon, said.append, 2)
    agenda.at(1.0, setattr, agenda, "stopped", True)
    agenda.run_to_end()
    assert said == [1, 2, 3]
