"""One record per request: its life, and that nothing else keeps a second one."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from llmserve.core.knobs import Knobs
from llmserve.scheduling.entry import Entry
from llmserve.scheduling.ledger import TenantUsage
from llmserve.scheduling.policies import POLICIES
from llmserve.scheduling.scheduler import Scheduler
from support.requests import request
from support.scripted_world import World, run

ONE = Knobs(max_active=1)


def filled(knobs: Knobs = ONE) -> Scheduler:
    """`a` runs, `b` and `c` wait."""
    scheduler = Scheduler(100)
    for n, id in enumerate("abc"):
        scheduler.offer(request(id, n, tenant=f"of {id}"), knobs, n)
    assert scheduler.next(knobs, 3) is scheduler.find("a")
    assert scheduler.next(knobs, 3) is None
    scheduler.check()
    return scheduler


def of(scheduler: Scheduler, id: str) -> Entry:
    entry = scheduler.find(id)
    assert entry is not None
    return entry


def test_an_entry_goes_from_waiting_to_dispatched_to_running_to_ended() -> None:
    scheduler = filled()
    entry = of(scheduler, "b")
    assert (entry.status, entry.wait_reason, entry.admitted_s) == ("waiting", "cap", 1)
    scheduler.finish("a", 4)
    assert scheduler.next(ONE, 5) is entry
    assert (entry.status, entry.wait_reason, entry.dispatched_s) == ("dispatched", None, 5)
    scheduler.started("b", 6)
    scheduler.emitted("b", 3)
    assert (entry.status, entry.emitted_tokens) == ("running", 3)
    scheduler.finish("b", 7)
    assert (entry.status, scheduler.find("b")) == ("ended", None)


def test_one_that_is_dropped_or_expires_while_it_waits_has_ended() -> None:
    scheduler = filled()
    left, late = of(scheduler, "b"), of(scheduler, "c")
    assert scheduler.drop("b")
    assert scheduler.expire(Knobs(queue_timeout_s=5), 100).queued_too_long == [late]
    assert (left.status, late.status) == ("ended", "ended")
    assert [entry.id for entry in scheduler.entries] == ["a"]
    scheduler.check()


def test_a_waiting_request_cannot_be_finished() -> None:
    with pytest.raises(AssertionError, match="b waits: drop it"):
        filled().finish("b", 4)


def test_an_id_may_come_back_once_its_request_has_left() -> None:
    """The heap still has the id of the first one, which waited behind others."""
    scheduler = filled()
    scheduler.drop("c")
    scheduler.offer(request("c", 9, tenant="of c"), ONE, 9)
    scheduler.offer(request("d", 8, tenant="of c"), ONE, 9)
    order = []
    while scheduler.active:
        scheduler.finish(next(one.id for one in scheduler.entries if not one.waits), 10)
        if (chosen := scheduler.next(ONE, 10)) is not None:
            order.append(chosen.id)
        scheduler.check()
    assert order == ["b", "d", "c"]


def wrong_status(scheduler: Scheduler) -> None:
    of(scheduler, "b").status = "ended"


def lost_from_the_index(scheduler: Scheduler) -> None:
    del scheduler._waiting["b"]


def out_of_order(scheduler: Scheduler) -> None:
    scheduler._waiting["b"] = scheduler._waiting.pop("b")


def reason_of_the_active(scheduler: Scheduler) -> None:
    of(scheduler, "a").wait_reason = "cap"


def news_of_the_active(scheduler: Scheduler) -> None:
    scheduler._changed["a"] = None


def early_tokens(scheduler: Scheduler) -> None:
    of(scheduler, "b").emitted_tokens = 1


def account_of_its_own(scheduler: Scheduler) -> None:
    of(scheduler, "b").usage = TenantUsage(waiting=1)


def miscounted_waiting(scheduler: Scheduler) -> None:
    of(scheduler, "b").usage.waiting += 1


def miscounted_active(scheduler: Scheduler) -> None:
    of(scheduler, "a").usage.active += 1


def miscounted_tokens(scheduler: Scheduler) -> None:
    scheduler.ledger.tokens_in_flight += 1


@pytest.mark.parametrize(
    "damage",
    [wrong_status, lost_from_the_index, out_of_order, reason_of_the_active, news_of_the_active,
     early_tokens, account_of_its_own, miscounted_waiting, miscounted_active, miscounted_tokens],
)  # fmt: skip
def test_check_finds_each_broken_invariant(damage: Callable[[Scheduler], None]) -> None:
    scheduler = filled()
    damage(scheduler)
    with pytest.raises(AssertionError):
        scheduler.check()


def dicts_with(key: str, root: Any) -> dict[str, dict[Any, Any]]:
    """By attribute, every dict of the package's objects that has this key."""
    found, seen, todo = {}, set(), [("", root)]
    while todo:
        name, value = todo.pop()
        if id(value) in seen or isinstance(value, ModuleType | type):
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            if key in value:
                found[name] = value
            todo += [(name, each) for each in value.values()]
        elif type(value).__module__.startswith("llmserve."):
            slots = getattr(value, "__struct_fields__", getattr(value, "__slots__", ()))
            fields = {name: getattr(value, name, None) for name in slots}
            todo += [*fields.items(), *getattr(value, "__dict__", {}).items()]
    return found


@pytest.mark.parametrize("policy", [*POLICIES, "custom"])
def test_a_requests_state_in_the_front_is_in_one_dict_and_indexes_hold_ids(policy: str) -> None:
    async def story(world: World) -> None:
        streams = [world.submit(id) for id in ("first", "second", "third")]
        here = dicts_with("third", world.service)
        assert {name for name, each in here.items() if each["third"] is not None} == {"_entries"}
        assert "_waiting" in here
        running = dicts_with("first", world.service)
        assert running.keys() == {"_entries"}
        for stream in streams:
            await stream.collect()

    knobs = Knobs().changed({"policy": policy, "max_active": 1, "admission_slo": "refuse",
                             "ttft_slo_ms": 60_000})  # fmt: skip
    run(story, knobs=knobs)
