"""The service on a scripted engine and virtual time: no sleep, no socket."""

from __future__ import annotations

import asyncio

import pytest

from llmserve.core.events import Finished, KnobsChanged, Rejection, TokensEmitted, WaitReasonChanged
from llmserve.core.knobs import KnobError, Knobs
from llmserve.core.types import Outcome, ParamError
from llmserve.engines.base import EngineError, RequestFailed
from llmserve.serving.stream import Refused, RequestTimeout, Stream
from support.scripted_world import World, run


def test_a_request_goes_through_and_tells_its_story() -> None:
    async def story(world: World) -> None:
        outcome = await world.submit("a").collect()
        assert outcome.text == "hello"
        assert outcome.token_ids == (0, 1)
        assert outcome.finish_reason == "stop"
        assert (outcome.ttft_s, outcome.e2e_s) == pytest.approx((1.0, 2.0))
        assert outcome.usage.completion_tokens == 2

    world = run(story)
    assert [type(e).__name__ for e in world.events] == [
        "Submitted", "Dispatched", "FirstToken", "TokensEmitted", "TokensEmitted", "Finished",
    ]


def test_no_more_than_max_active_are_in_the_engine_and_all_are_served() -> None:
    most = 0

    async def story(world: World) -> None:
        nonlocal most
        streams = [world.submit(str(n)) for n in range(10)]
        tasks = [asyncio.create_task(stream.collect()) for stream in streams]
        while not all(task.done() for task in tasks):
            most = max(most, len(world.engine.here))
            await asyncio.sleep(0.5)
        assert {task.result().text for task in tasks} == {"hello"}

    world = run(story, knobs=Knobs(max_active=3))
    assert most == 3
    assert {e.reason for e in world.of(WaitReasonChanged)} == {"cap"}


def test_leaving_while_queued_frees_the_place() -> None:
    async def story(world: World) -> None:
        first, second, third = (world.submit(id) for id in "abc")
        second.cancel()
        second.cancel()
        assert second.outcome is not None
        assert second.outcome.finish_reason == "abort"
        assert (await third.collect()).text == "hello"
        assert first.outcome is not None

    world = run(story, knobs=Knobs(max_active=1))
    assert "b" not in world.engine.freed


def test_leaving_while_running_stops_the_work_and_lets_the_next_in() -> None:
    async def story(world: World) -> None:
        first, second = world.submit("a"), world.submit("b")
        async for _ in first:
            first.cancel()
            break
        assert (await second.collect()).text == "hello"
        assert first.outcome is not None
        assert first.outcome.finish_reason == "abort"
        assert first.outcome.token_ids == (0,)
        assert world.clock.now() == pytest.approx(3.0)

    run(story, knobs=Knobs(max_active=1))


def test_cancelled_before_its_task_ever_ran_still_frees_the_place() -> None:
    async def story(world: World) -> None:
        first = world.submit("a")
        first.cancel()  # its task exists and has not taken a step
        assert (await world.submit("b").collect()).text == "hello"
        assert first.outcome is not None

    run(story, knobs=Knobs(max_active=1))


def test_cancelling_collect_cancels_the_request() -> None:
    async def story(world: World) -> None:
        task = asyncio.create_task(world.submit("a").collect())
        await asyncio.sleep(0.5)
        assert world.engine.here == ["a"]
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert world.engine.here == []

    run(story)


def test_waiting_past_the_queue_timeout_is_refused_with_the_knob_named() -> None:
    async def story(world: World) -> None:
        world.engine.hold()
        world.submit("a")
        waiting = world.submit("b")
        with pytest.raises(Refused, match="queue_timeout_s") as refused:
            await waiting.collect()
        assert refused.value.rejected.reason == "queue_timeout"
        assert world.clock.now() == pytest.approx(5.0, abs=0.01)
        world.engine.go()

    run(story, knobs=Knobs(max_active=1, queue_timeout_s=5))


def test_a_deadline_that_goes_with_its_request_leaves_the_next_ones_in_force() -> None:
    async def story(world: World) -> None:
        world.engine.hold()
        world.submit("a")
        first = world.submit("b")  # due at 5
        await asyncio.sleep(2)
        second = world.submit("c")  # due at 7
        first.cancel()
        with pytest.raises(Refused, match="queue_timeout_s"):
            await second.collect()
        assert world.clock.now() == pytest.approx(7.0, abs=0.01)
        world.engine.go()

    run(story, knobs=Knobs(max_active=1, queue_timeout_s=5))


def test_a_request_past_its_life_is_stopped_running_or_waiting() -> None:
    async def story(world: World) -> None:
        world.engine.hold()
        running, waiting = world.submit("a"), world.submit("b")
        for stream in (running, waiting):
            with pytest.raises(RequestTimeout, match="request_timeout_s"):
                await stream.collect()
        assert world.clock.now() == pytest.approx(7.0, abs=0.01)

    world = run(story, knobs=Knobs(max_active=1, request_timeout_s=7))
    assert [e.reason for e in world.of(Finished)] == ["timeout", "timeout"]


def test_a_full_house_refuses_at_the_door_and_publishes_it() -> None:
    async def story(world: World) -> None:
        world.submit("a")
        with pytest.raises(Refused):
            world.submit("b")

    world = run(story, knobs=Knobs(max_active=1, queue_max=0))
    assert [e.reason for e in world.of(Rejection)] == ["queue_full"]


def test_lowering_the_timeout_applies_to_who_waits_already() -> None:
    async def story(world: World) -> None:
        world.engine.hold()
        world.submit("a")
        waiting = world.submit("b")
        await world.service.set_knobs({"queue_timeout_s": 2})
        with pytest.raises(Refused):
            await waiting.collect()
        assert world.clock.now() == pytest.approx(2.0, abs=0.01)
        world.engine.go()

    run(story, knobs=Knobs(max_active=1, queue_timeout_s=500))


def test_a_knob_change_tells_what_was_what_became_and_at_which_step() -> None:
    async def story(world: World) -> None:
        applied = await world.service.set_knobs({"max_num_seqs": 999, "queue_max": 5}, "magic")
        assert applied.changed == {"max_num_seqs": (32, 256), "queue_max": (1000, 5)}
        assert [c.got for c in applied.clamped] == [256]
        assert world.service.board.current.max_num_seqs == 256

    world = run(story)
    (event,) = world.of(KnobsChanged)
    assert (event.source, event.step, event.clamped) == ("magic", 7, ("max_num_seqs",))


def test_a_bad_knob_changes_nothing_and_publishes_nothing() -> None:
    async def story(world: World) -> None:
        with pytest.raises(KnobError):
            await world.service.set_knobs({"queue_max": 5, "max_num_seqs": -1})
        assert world.service.board.current == Knobs()

    assert run(story).of(KnobsChanged) == []


def test_an_engine_that_dies_fails_who_ran_restarts_and_serves_who_waited() -> None:
    async def story(world: World) -> None:
        running, waiting = world.submit("a"), world.submit("b")
        world.engine.fail_next = EngineError("it was killed")
        with pytest.raises(EngineError, match="it was killed"):
            await running.collect()
        assert (await waiting.collect()).text == "hello"

    world = run(story, knobs=Knobs(max_active=1))
    assert world.engine.starts == 2
    assert [e.reason for e in world.of(Finished)] == ["error", "stop"]


def test_an_engine_that_cannot_restart_fails_who_waits_and_the_next_tries_again() -> None:
    async def story(world: World) -> None:
        running, waiting = world.submit("a"), world.submit("b")
        world.engine.fail_next = EngineError("it was killed")
        world.engine.start_failures = 3
        for stream in (running, waiting):
            with pytest.raises(EngineError):
                await stream.collect()
        assert not world.service.ready
        assert (await world.submit("c").collect()).text == "hello"

    run(story, knobs=Knobs(max_active=1))


def test_one_request_that_breaks_in_the_engine_leaves_the_others_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story(world: World) -> None:
        broken = world.submit("a")
        world.engine.fail_next = ZeroDivisionError("oops")
        with pytest.raises(EngineError, match="oops"):
            await broken.collect()
        assert (await world.submit("b").collect()).text == "hello"

    assert run(story).engine.starts == 1
    assert "oops" in caplog.text


def test_what_an_engine_says_of_a_request_that_it_lost_is_told_in_its_words() -> None:
    async def story(world: World) -> None:
        lost = world.submit("a")
        world.engine.fail_next = RequestFailed("the form cannot be kept to")
        with pytest.raises(EngineError, match=r"^the form cannot be kept to$"):
            await lost.collect()
        assert (await world.submit("b").collect()).text == "hello"

    assert run(story).engine.starts == 1


def test_a_parameter_that_only_the_engine_can_judge_is_told_as_the_clients_error() -> None:
    async def story(world: World) -> None:
        wrong = world.submit("a")
        world.engine.fail_next = ParamError("seed", "no such seed")
        with pytest.raises(ParamError, match="no such seed"):
            await wrong.collect()

    assert run(story).engine.starts == 1


def test_stopping_ends_everyone_once() -> None:
    streams: list[Stream] = []

    async def story(world: World) -> None:
        world.engine.hold()
        streams.extend(world.submit(id) for id in "abcd")

    run(story, knobs=Knobs(max_active=2))
    reasons = [stream.outcome.finish_reason for stream in streams if stream.outcome]
    assert reasons == ["abort", "abort", "timeout", "timeout"]


def test_a_reader_that_comes_late_reads_all_that_was_buffered() -> None:
    async def story(world: World) -> None:
        stream = world.submit("a")
        await asyncio.sleep(10)
        assert [chunk.text for chunk in stream.ready()] == ["he", "llo"]
        outcome: Outcome = await stream.collect()
        assert outcome.text == "hello"

    world = run(story)
    assert sum(e.n for e in world.of(TokensEmitted)) == 2
