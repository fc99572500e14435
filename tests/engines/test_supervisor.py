"""The engine's life between sleep, wake, restart and death, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llmserve.core.events import Finished
from llmserve.core.knobs import KnobError, Knobs
from llmserve.core.types import ParamError
from llmserve.engines.base import EngineError
from llmserve.serving.stream import Refused, Stream
from support.scripted import DozingEngine
from support.scripted_world import World, run


async def text(stream: Stream) -> str:
    return (await stream.collect()).text


async def settle() -> None:
    """Let everything happen that needs no time to pass."""
    await asyncio.sleep(0.001)


def dozing(
    test: Callable[[World, DozingEngine], Coroutine[Any, Any, None]], knobs: Knobs | None = None
) -> None:
    engine = DozingEngine(("he", "llo"), 1.0)

    async def story(world: World) -> None:
        await test(world, engine)

    run(story, knobs=knobs, engine=engine)


def test_who_comes_while_it_sleeps_waits_and_is_served_after_waking() -> None:
    async def story(world: World) -> None:
        keeper = world.service.supervisor
        told = await keeper.sleep(1, 30)
        assert "stopped instead" in told
        assert world.engine.stops == 1
        waiting = world.submit("a")
        await asyncio.sleep(20)
        assert world.engine.here == []
        assert world.engine.starts == 1
        await keeper.wake()
        assert await text(waiting) == "hello"
        assert world.engine.starts == 2

    run(story)


def test_waiting_for_a_sleeping_engine_ends_at_the_queue_timeout() -> None:
    async def story(world: World) -> None:
        await world.service.supervisor.sleep(1, 0)
        with pytest.raises(Refused, match="queue_timeout_s"):
            await world.submit("a").collect()
        assert world.clock.now() == pytest.approx(4.0, abs=0.01)

    run(story, knobs=Knobs(queue_timeout_s=4))


def test_sleep_lets_what_runs_end_and_hands_over_nothing_new() -> None:
    async def story(world: World) -> None:
        first, second = world.submit("a"), world.submit("b")
        told = await world.service.supervisor.sleep(1, 30)
        assert first.outcome is not None
        assert first.outcome.text == "hello"
        assert second.outcome is None
        assert "ended" not in told
        await world.service.supervisor.wake()
        assert await text(second) == "hello"

    world = run(story, knobs=Knobs(max_active=1))
    assert [event.reason for event in world.of(Finished)] == ["stop", "stop"]


def test_sleep_ends_what_outlives_its_patience_and_says_so_to_both_sides() -> None:
    async def story(world: World) -> None:
        running = world.submit("a")
        told = await world.service.supervisor.sleep(1, 1.5)
        assert told.endswith("1 request was not done within 1.5 s and ended")
        with pytest.raises(EngineError, match="put to sleep before this request was done"):
            await running.collect()
        assert running.outcome is not None
        assert running.outcome.text == "he"

    run(story)


def test_knobs_turned_while_it_sleeps_are_adopted_at_waking() -> None:
    async def story(world: World) -> None:
        await world.service.supervisor.sleep(1, 0)
        before = len(world.engine.applied)
        applied = await world.service.set_knobs({"max_num_seqs": 300})
        assert applied.adopted_step is None
        assert len(world.engine.applied) == before
        await world.service.supervisor.wake()
        assert world.engine.applied[-1].max_num_seqs == 300
        assert world.service.board.current.max_num_seqs == 256  # its ceiling

    run(story)


def test_an_engine_with_a_sleep_of_its_own_is_not_stopped() -> None:
    async def story(world: World, engine: DozingEngine) -> None:
        keeper = world.service.supervisor
        assert await keeper.sleep(2, 0) == "asleep at level 2"
        assert await keeper.sleep(1, 0) == "the engine sleeps already"
        assert "awake again" in await keeper.wake()
        assert await keeper.wake() == "the engine is awake"
        assert (engine.slept, engine.woken, engine.stops, engine.starts) == ([2], 1, 0, 1)
        assert await text(world.submit("a")) == "hello"

    dozing(story)


def test_an_engine_that_does_not_wake_is_started_anew() -> None:
    async def story(world: World, engine: DozingEngine) -> None:
        await world.service.supervisor.sleep(1, 0)
        engine.wake_failures = 1
        await world.service.supervisor.wake()
        assert (engine.woken, engine.stops, engine.starts) == (1, 1, 2)

    dozing(story)


@pytest.mark.parametrize("defect", [False, True])
def test_a_waking_that_fails_is_told_to_all_and_the_next_request_tries_again(
    defect: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(world: World) -> None:
        await world.service.supervisor.sleep(1, 0)
        waiting = world.submit("a")
        world.engine.start_failures = 3
        if defect:
            world.engine.start_failure = ZeroDivisionError("it did not start")
        with pytest.raises(EngineError, match="did not start"):
            await world.service.supervisor.wake()
        with pytest.raises(EngineError, match="did not start"):
            await waiting.collect()
        assert await text(world.submit("b")) == "hello"

    run(story)
    assert ("ZeroDivisionError" in caplog.text) == defect


@pytest.mark.parametrize("level", [0, 3])
def test_another_level_is_refused_and_nothing_sleeps(level: int) -> None:
    async def story(world: World) -> None:
        with pytest.raises(ParamError, match="level 1 or 2"):
            await world.service.supervisor.sleep(level, 0)
        assert world.service.ready

    run(story)


def test_an_interrupted_sleep_serves_on() -> None:
    async def story(world: World) -> None:
        world.engine.hold()
        first, second = world.submit("a"), world.submit("b")
        sleeping = asyncio.create_task(world.service.supervisor.sleep(1, 30))
        await settle()
        assert not world.service.ready
        sleeping.cancel()
        await asyncio.wait([sleeping])
        world.engine.go()
        assert [await text(first), await text(second)] == ["hello", "hello"]
        assert world.engine.starts == 1

    run(story, knobs=Knobs(max_active=1))


def test_an_interrupted_waking_leaves_it_asleep() -> None:
    async def story(world: World) -> None:
        await world.service.supervisor.sleep(1, 0)
        world.engine.lives.clear()
        waking = asyncio.create_task(world.service.supervisor.wake())
        await settle()
        waking.cancel()
        await asyncio.wait([waking])
        assert world.service.supervisor.state == "asleep"
        world.engine.lives.set()
        await world.service.supervisor.wake()
        assert await text(world.submit("a")) == "hello"

    run(story)


def test_an_engine_that_dies_while_it_is_put_to_sleep_is_not_brought_back_before_waking() -> None:
    async def story(world: World) -> None:
        running = world.submit("a")
        world.engine.fail_next = EngineError("it was killed")
        await world.service.supervisor.sleep(1, 30)
        with pytest.raises(EngineError, match="it was killed"):
            await running.collect()
        await asyncio.sleep(5)
        assert (world.service.supervisor.state, world.engine.starts) == ("asleep", 1)

    run(story)


def test_a_restart_keeps_who_waits_and_gives_what_runs_its_time() -> None:
    async def story(world: World) -> None:
        first, second = world.submit("a"), world.submit("b")
        assert await world.service.supervisor.restart(5) == "the engine was restarted"
        assert first.outcome is not None
        assert first.outcome.text == "hello"
        assert await text(second) == "hello"
        assert world.engine.starts == 2

    run(story, knobs=Knobs(max_active=1))


def test_a_restart_brings_back_an_engine_that_had_failed_or_slept() -> None:
    async def story(world: World) -> None:
        keeper = world.service.supervisor
        broken = world.submit("a")
        world.engine.fail_next, world.engine.start_failures = EngineError("it was killed"), 3
        with pytest.raises(EngineError, match="it was killed"):
            await broken.collect()
        await asyncio.sleep(10)
        assert keeper.state == "failed"
        await keeper.restart(0)
        await keeper.sleep(1, 0)
        await keeper.restart(0)
        assert await text(world.submit("b")) == "hello"

    run(story)


def test_an_interrupted_restart_is_told_to_who_waits_and_the_next_request_tries_again() -> None:
    async def story(world: World) -> None:
        world.engine.lives.clear()
        restarting = asyncio.create_task(world.service.supervisor.restart(0))
        await settle()
        waiting, gate = world.submit("a"), asyncio.create_task(world.service.when_up())
        await settle()
        restarting.cancel()
        for told in (waiting.collect(), gate):
            with pytest.raises(EngineError, match="start was interrupted"):
                await asyncio.wait_for(told, 1)
        world.engine.lives.set()
        assert await text(world.submit("b")) == "hello"

    run(story)


def test_changes_of_state_wait_for_each_other() -> None:
    async def story(world: World) -> None:
        keeper = world.service.supervisor
        world.engine.lives.clear()
        restarting = asyncio.create_task(keeper.restart(0))
        sleeping = asyncio.create_task(keeper.sleep(1, 0))
        await settle()
        assert keeper.state == "restarting"
        world.engine.lives.set()
        await asyncio.gather(restarting, sleeping)
        assert (keeper.state, world.engine.starts) == ("asleep", 2)

    run(story)


@pytest.mark.parametrize("what", ["restart", "revival"])
def test_stopping_cuts_a_start_short_that_does_not_end(what: str) -> None:
    async def story(world: World) -> None:
        world.engine.lives.clear()
        if what == "restart":
            busy = asyncio.create_task(world.service.supervisor.restart(0))
        else:
            world.engine.fail_next = EngineError("it was killed")
            busy = asyncio.create_task(text(world.submit("a")))
        await asyncio.sleep(10)
        assert world.engine.starts == 2
        await world.service.stop()
        (end,) = await asyncio.gather(busy, return_exceptions=True)
        assert isinstance(end, EngineError)
        assert ("stopped" if what == "restart" else "killed") in str(end)
        with pytest.raises(EngineError, match="server was stopped"):
            await world.service.supervisor.wake()

    run(story)


def test_who_needs_the_running_engine_to_be_read_at_all_waits_for_it_within_bounds() -> None:
    async def story(world: World) -> None:
        service = world.service
        await service.when_up()
        await service.supervisor.sleep(1, 0)
        gate = [asyncio.create_task(service.when_up()) for _ in range(2)]
        await settle()
        with pytest.raises(Refused, match="2 requests wait"):
            await service.when_up()
        await service.supervisor.wake()
        assert await asyncio.gather(*gate) == [None, None]
        await service.supervisor.sleep(1, 0)
        slept = world.clock.now()
        with pytest.raises(Refused, match="within 4 s"):
            await service.when_up()
        assert world.clock.now() - slept == pytest.approx(4, abs=0.01)

    run(story, knobs=Knobs(queue_max=2, queue_timeout_s=4))


def test_who_waits_for_an_engine_that_does_not_come_is_told_why() -> None:
    async def story(world: World) -> None:
        service = world.service
        await service.supervisor.sleep(1, 0)
        waiting = asyncio.create_task(service.when_up())
        await settle()
        world.engine.start_failures = 3
        with pytest.raises(EngineError, match="did not start"):
            await service.supervisor.wake()
        with pytest.raises(EngineError, match="did not start"):
            await waiting
        await service.when_up()  # asks for one more attempt

    run(story)


def test_who_comes_to_an_engine_that_died_unseen_waits_for_the_next_one() -> None:
    async def story(world: World) -> None:
        assert await text(world.submit("a")) == "hello"
        world.engine.dead = True
        assert await text(world.submit("b")) == "hello"
        assert world.engine.starts == 2

    run(story)


def test_evicting_happens_once_the_cap_is_adopted_and_names_who_made_room() -> None:
    async def story(world: World, engine: DozingEngine) -> None:
        streams = [world.submit(name) for name in "abc"]
        await settle()
        applied = await world.service.set_knobs({"max_num_seqs": 1}, evict=True)
        assert applied.evicted == ("b", "c")
        assert "2 running preempted" in str(applied)
        assert [await text(stream) for stream in streams] == ["hello"] * 3
        await world.service.set_knobs({"max_num_seqs": 2})
        assert engine.evictions == 1

    dozing(story)


@pytest.mark.parametrize(("evict", "says"), [(True, "cannot preempt"), ("yes", "true or false")])
def test_evicting_where_the_engine_cannot_is_refused_and_changes_nothing(
    evict: object, says: str
) -> None:
    async def story(world: World) -> None:
        with pytest.raises(KnobError, match=says) as caught:
            await world.service.set_knobs({"max_num_seqs": 1}, evict=evict)
        assert caught.value.name == "evict"
        assert world.service.board.current == Knobs()

    run(story)
