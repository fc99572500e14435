"""Replies kept: only certain ones, only good ones, computed once."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from llmserve.core.events import CacheLooked, Rejection, Submitted
from llmserve.core.knobs import Knobs
from llmserve.core.types import Request
from llmserve.engines.base import EngineError
from llmserve.entrypoints.http.response_cache import CacheOptions, ReplyCache
from llmserve.serving.stream import Refused
from support.requests import request
from support.scripted_world import World, run


def asked(id: str, world: World, **sampling: Any) -> Request:
    one = request(id, world.clock.now())
    return msgspec.structs.replace(one, sampling=msgspec.structs.replace(one.sampling, **sampling))


def cache_of(world: World, **options: Any) -> ReplyCache:
    return ReplyCache(world.service, CacheOptions(**options))


def looks(world: World) -> list[bool]:
    return [event.hit for event in world.of(CacheLooked)]


def test_the_second_of_two_equal_requests_computes_nothing_and_gets_the_same() -> None:
    async def story(world: World) -> None:
        cache = cache_of(world)
        first, found = cache.submit(asked("a", world))
        assert found == "miss"
        outcome = await first.collect()
        second, found = cache.submit(asked("b", world))
        assert found == "hit"
        chunks = [chunk async for chunk in second]
        assert "".join(chunk.text for chunk in chunks) == outcome.text == "hello"
        assert chunks[-1].finish_reason == outcome.finish_reason
        assert second.usage == first.usage

    world = run(story)
    assert [e.request_id for e in world.of(Submitted)] == ["a"]
    assert looks(world) == [False, True]


def test_any_other_prompt_or_parameter_is_another_request() -> None:
    async def story(world: World) -> None:
        cache = cache_of(world)
        one = asked("a", world)
        await cache.submit(one)[0].collect()
        others = [
            msgspec.structs.replace(one, prompt_ids=(1, 2)),
            asked("a", world, max_tokens=9), asked("a", world, stop=("x",)),
            asked("a", world, logprobs=1), asked("a", world, seed=1),
            asked("a", world, temperature=0.5, seed=1),
        ]  # fmt: skip
        for n, other in enumerate(others):
            stream, found = cache.submit(msgspec.structs.replace(other, id=f"b{n}"))
            assert found == "miss"
            await stream.collect()

    run(story)


@pytest.mark.parametrize(("shared", "expected"), [(False, "miss"), (True, "hit")])
def test_no_tenant_is_given_what_another_asked_unless_told_so(shared: bool, expected: str) -> None:
    def of(tenant: str, world: World) -> Request:
        return msgspec.structs.replace(asked(f"{tenant}1", world), tenant=tenant)

    async def story(world: World) -> None:
        cache = cache_of(world, shared=shared)
        first, _ = cache.submit(of("a", world))
        flight, found = cache.submit(of("b", world))
        assert found == expected
        await asyncio.gather(first.collect(), flight.collect())
        kept, found = cache.submit(of("c", world))
        assert found == expected
        await kept.collect()

    world = run(story)
    assert len(world.of(Submitted)) == (1 if shared else 3)


def test_a_hit_counts_as_a_request_of_its_tenant_and_not_as_tokens() -> None:
    async def story(world: World) -> None:
        cache = cache_of(world)
        for id in "abc":
            await cache.submit(asked(id, world))[0].collect()
        with pytest.raises(Refused) as refused:
            cache.submit(asked("d", world))
        assert refused.value.rejected.reason == "rate_limit"
        assert refused.value.rejected.retry_after_s == pytest.approx(8.0)  # after 2 s of work

    knobs = Knobs(rate_limit_rps=0.1, rate_burst=3, rate_limit_tps=1, rate_burst_tokens=12)
    world = run(story, knobs=knobs)
    assert [(e.request_id, e.reason) for e in world.of(Rejection)] == [("d", "rate_limit")]
    assert looks(world) == [False, True, True]


def test_who_asks_for_it_anew_is_computed_and_not_kept() -> None:
    async def story(world: World) -> None:
        cache = cache_of(world)
        for id, anew in (("a", True), ("b", False), ("c", True)):
            stream, found = cache.submit(asked(id, world), anew=anew)
            assert found == (None if anew else "miss")
            await stream.collect()

    world = run(story)
    assert len(world.of(Submitted)) == 3


def test_what_is_drawn_by_chance_is_never_kept() -> None:
    async def story(world: World) -> None:
        cache = cache_of(world)
        for id in "ab":
            stream, found = cache.submit(asked(id, world, temperature=0.7))
            assert found is None
            await stream.collect()

    world = run(story)
    assert len(world.of(Submitted)) == 2
    assert looks(world) == []


def test_a_reply_is_kept_for_its_time_and_no_more_than_so_many() -> None:
    async def story(world: World) -> None:
        cache = cache_of(world, ttl_s=10, max_entries=2)
        for id, seed in (("a", 1), ("b", 2), ("c", 3)):
            await cache.submit(asked(id, world, seed=seed))[0].collect()
        found = [cache.submit(asked(f"x{seed}", world, seed=seed)) for seed in (3, 2)]
        assert [word for _, word in found] == ["hit", "hit"]
        again, word = cache.submit(asked("x1", world, seed=1))
        assert word == "miss"
        await again.collect()
        await asyncio.sleep(10)
        late, word = cache.submit(asked("x9", world, seed=3))
        assert word == "miss"
        await late.collect()

    run(story)


def test_equal_requests_in_flight_are_computed_once() -> None:
    async def story(world: World) -> None:
        cache = cache_of(world)
        streams = [cache.submit(asked(id, world)) for id in "abc"]
        assert [found for _, found in streams] == ["miss", "hit", "hit"]
        outcomes = await asyncio.gather(*(stream.collect() for stream, _ in streams))
        assert {outcome.text for outcome in outcomes} == {"hello"}

    world = run(story)
    assert len(world.of(Submitted)) == 1


def test_the_first_client_leaving_takes_nothing_from_those_who_follow() -> None:
    async def story(world: World) -> None:
        cache = cache_of(world)
        (first, _), (second, _), (third, _) = (cache.submit(asked(id, world)) for id in "abc")
        await asyncio.sleep(0.5)
        first.cancel()
        third.cancel()
        assert third.outcome is not None
        assert third.outcome.finish_reason == "abort"
        assert (await second.collect()).text == "hello"

    world = run(story)
    assert world.engine.freed == ["a"]


def test_nobody_joins_work_whose_clients_have_all_left() -> None:
    async def story(world: World) -> None:
        cache = cache_of(world)
        first, _ = cache.submit(asked("a", world))
        await asyncio.sleep(1.5)
        first.cancel()  # its end is a turn of the loop away
        second, found = cache.submit(asked("b", world))
        assert found == "miss"
        assert (await second.collect()).text == "hello"
        assert cache.submit(asked("c", world))[1] == "hit"

    run(story)


def test_when_all_have_left_the_work_stops() -> None:
    async def story(world: World) -> None:
        cache = cache_of(world)
        (first, _), (second, _) = (cache.submit(asked(id, world)) for id in "ab")
        await asyncio.sleep(0.5)
        first.cancel()
        await asyncio.sleep(0.1)
        assert world.engine.here == ["a"]
        second.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert world.engine.here == []
        assert cache.submit(asked("c", world))[1] == "miss"

    run(story)


def test_a_failed_reply_is_told_to_all_who_waited_and_not_kept() -> None:
    async def story(world: World) -> None:
        cache = cache_of(world)
        world.engine.fail_next = ValueError("broken")
        streams = [cache.submit(asked(id, world))[0] for id in "ab"]
        for stream in streams:
            with pytest.raises(EngineError, match="broken"):
                await stream.collect()
        again, found = cache.submit(asked("c", world))
        assert found == "miss"
        assert (await again.collect()).text == "hello"

    run(story)


def test_without_the_option_every_request_is_computed() -> None:
    async def story(world: World) -> None:
        cache = ReplyCache(world.service, None)
        for id in "ab":
            stream, found = cache.submit(asked(id, world))
            assert found is None
            await stream.collect()

    world = run(story, knobs=Knobs())
    assert len(world.of(Submitted)) == 2


def test_the_option_is_off_unless_asked_for_and_checked() -> None:
    assert CacheOptions.read(None) is CacheOptions.read(False) is None
    assert CacheOptions.read(True) == CacheOptions()
    assert CacheOptions.read({"ttl_s": 5}) == CacheOptions(ttl_s=5)
    wrong: Any
    for wrong in (
        {"ttl": 5}, {"max_entries": 0}, {"ttl_s": 0}, {"ttl_s": 10**5000}, {"max_entries": 2.5},
        {"ttl_s": float("nan")}, 5, "yes",
    ):  # fmt: skip
        with pytest.raises(ValueError, match="response_cache"):
            CacheOptions.read(wrong)
