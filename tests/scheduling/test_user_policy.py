"""A policy of the user's own: tried before it is let in, removed when it fails."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any

import pytest

from llmserve.core.events import Dispatched, KnobsChanged
from llmserve.core.knobs import KnobError, Knobs
from llmserve.core.types import Request
from llmserve.scheduling.user_policy import LedgerView, PolicyError, try_out
from support.scripted_world import World, run

Waiting = tuple[Request, ...]
ONE = Knobs(max_active=1)


def last_come(waiting: Waiting, ledger: LedgerView, knobs: Knobs) -> str:
    return waiting[-1].id


def test_a_good_function_passes_the_trial() -> None:
    try_out(last_come)
    try_out(lambda waiting, ledger, knobs: min(waiting, key=lambda r: ledger.tenants[r.tenant]).id)


def nobody(waiting: Waiting, ledger: LedgerView, knobs: Knobs) -> Any:
    return None


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def leaves(waiting: Waiting, ledger: LedgerView, knobs: Knobs) -> str:
    raise SystemExit(3)


def raises_the_unspeakable(waiting: Waiting, ledger: LedgerView, knobs: Knobs) -> str:
    raise Unspeakable


class Touchy:
    """As an array is: compared with text it has no truth."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("neither true nor false")

    def __hash__(self) -> int:
        return 0


def a_stranger(waiting: Waiting, ledger: LedgerView, knobs: Knobs) -> str:
    return "stranger"


def raises_at_five(waiting: Waiting, ledger: LedgerView, knobs: Knobs) -> str:
    return waiting[0].id if len(waiting) < 5 else waiting[99].id


def by_mood(moods: itertools.count[int]) -> Any:
    return lambda waiting, ledger, knobs: waiting[next(moods) % len(waiting)].id


def writes(waiting: Waiting, ledger: LedgerView, knobs: Knobs) -> str:
    ledger.tenants["a"] = ledger.tenants["a"]  # type: ignore[index]  # that is the point
    return waiting[0].id


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (nobody, "returned None"),
        (lambda waiting, ledger, knobs: waiting[0], "returned a Request, which"),
        (leaves, "raised SystemExit: 3"),
        (raises_the_unspeakable, "raised .*<exception str\\(\\) failed>"),
        (a_stranger, "'stranger', which is not the id"),
        (raises_at_five, "raised IndexError: tuple index out of range"),
        (by_mood(itertools.count()), "chose differently when asked again"),
        (writes, "does not support item assignment"),
        (lambda waiting, ledger: waiting[0].id, "raised TypeError"),
    ],
)
def test_a_bad_function_is_told_what_it_did_before_it_chooses_anybody(
    function: Any, says: str
) -> None:
    with pytest.raises(PolicyError, match=says):
        try_out(function)


def test_a_users_policy_takes_over_at_once_and_loses_nobody() -> None:
    async def story(world: World) -> None:
        streams = [world.submit(id) for id in "abcd"]
        await world.service.use_policy(last_come)
        for stream in streams:
            await stream.collect()
        policy = world.service.user_policy
        assert policy is not None
        assert (policy.name, policy.picks) == ("last_come", 3)

    world = run(story, knobs=ONE)
    assert [e.request_id for e in world.of(Dispatched)] == ["a", "d", "c", "b"]
    assert world.of(KnobsChanged)[0].source == "policy last_come"


def test_a_policy_that_raises_is_removed_and_fifo_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def tired(waiting: Waiting, ledger: LedgerView, knobs: Knobs) -> str:
        if len(waiting) < 3:
            raise RuntimeError("too tired")
        return waiting[-1].id

    async def story(world: World) -> None:
        streams = [world.submit(id) for id in "abcde"]
        await world.service.use_policy(tired)
        outcomes = await asyncio.gather(*(stream.collect() for stream in streams))
        assert {outcome.text for outcome in outcomes} == {"hello"}
        assert world.service.board.current.policy == "fifo"
        assert str(world.service.policy_error) == "tired raised RuntimeError: too tired"
        assert world.service.user_policy is None
        with pytest.raises(KnobError, match="register a function first"):
            await world.service.set_knobs({"policy": "custom"})

    world = run(story, knobs=ONE)
    assert [e.request_id for e in world.of(Dispatched)] == ["a", "e", "d", "b", "c"]
    change = world.of(KnobsChanged)[-1]
    assert change.changed == {"policy": ("custom", "fifo")}
    assert change.source == "policy removed: tired raised RuntimeError: too tired"
    assert [r.levelno for r in caplog.records if "was removed" in r.message] == [logging.ERROR]


def test_a_policy_that_names_a_stranger_is_removed_too() -> None:
    async def story(world: World) -> None:
        await world.service.use_policy(a_stranger)
        assert (await world.submit("a").collect()).text == "hello"
        assert "not the id" in str(world.service.policy_error)

    run(story)


@pytest.mark.parametrize("worst", [SystemExit(3), asyncio.CancelledError(), Unspeakable()])
def test_whatever_a_policy_raises_serving_goes_on(worst: BaseException) -> None:
    def bad(waiting: Waiting, ledger: LedgerView, knobs: Knobs) -> str:
        raise worst

    async def story(world: World) -> None:
        streams = [world.submit(id) for id in "ab"]
        await world.service.use_policy(bad)
        outcomes = await asyncio.gather(*(stream.collect() for stream in streams))
        assert {outcome.text for outcome in outcomes} == {"hello"}
        assert world.service.board.current.policy == "fifo"
        assert type(worst).__name__ in str(world.service.policy_error)

    run(story, knobs=ONE)


def test_a_policy_that_returns_what_cannot_be_compared_is_removed() -> None:
    def touchy(waiting: Waiting, ledger: LedgerView, knobs: Knobs) -> Any:
        return Touchy()

    async def story(world: World) -> None:
        await world.service.use_policy(touchy)
        assert (await world.submit("a").collect()).text == "hello"
        assert "returned a Touchy" in str(world.service.policy_error)

    run(story)


def test_another_function_takes_the_place_of_the_first() -> None:
    async def story(world: World) -> None:
        streams = [world.submit(id) for id in "abcd"]
        await world.service.use_policy(a_stranger)
        await world.service.use_policy(last_come)
        for stream in streams:
            await stream.collect()
        assert world.service.policy_error is None

    world = run(story, knobs=ONE)
    assert [e.request_id for e in world.of(Dispatched)][1:] == ["d", "c", "b"]


def test_custom_at_start_without_a_function_is_fifo() -> None:
    async def story(world: World) -> None:
        streams = [world.submit(id) for id in "abc"]
        for stream in streams:
            await stream.collect()

    world = run(story, knobs=Knobs(policy="custom", max_active=1))
    assert [e.request_id for e in world.of(Dispatched)] == ["a", "b", "c"]
