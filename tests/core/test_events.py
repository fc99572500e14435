from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from llmserve.core.events import Event, EventBus, StepRecorded, TokensEmitted, WaitReasonChanged
from llmserve.core.types import StepRecord, StepRow


def token(n: int) -> TokensEmitted:
    return TokensEmitted(t=float(n), counts={"a": n})


def test_a_slow_reader_drops_the_oldest_and_counts_them() -> None:
    bus = EventBus()
    box = bus.subscribe(capacity=3)
    for n in range(1, 6):
        bus.publish(token(n))
    assert [e.n for e in box.drain() if isinstance(e, TokensEmitted)] == [3, 4, 5]
    assert box.dropped == 2
    assert box.drain() == []


def test_a_closed_mailbox_gets_nothing_more() -> None:
    bus = EventBus()
    box = bus.subscribe()
    box.close()
    bus.publish(token(1))
    assert box.drain() == []


def test_a_fold_that_raises_is_removed_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = EventBus()
    seen: list[Event] = []

    def broken(event: Event) -> None:
        raise KeyError("broken")

    bus.attach(broken)
    bus.attach(seen.append)
    bus.publish(token(1))
    bus.publish(token(2))
    assert len(seen) == 2
    assert caplog.text.count("was removed") == 1


def test_events_travel_as_json_and_come_back_equal() -> None:
    record = StepRecord(
        index=3,
        start_s=1.5,
        duration_s=0.01,
        rows=(StepRow("a", "prefill", 7),),
        running=1,
        waiting=2,
        kv_used_tokens=16,
        kv_capacity_tokens=64,
        max_num_seqs=4,
        max_num_batched_tokens=8,
        preempted=("b",),
        wait_reasons=(("c", "kv"),),
        satisfied=("max_num_seqs",),
    )
    held = WaitReasonChanged(t=0.0, request_id="a", reason="cap")
    for event in (token(1), held, StepRecorded(t=2, record=record)):
        decoder: Any = msgspec.json.Decoder(Event)
        assert decoder.decode(msgspec.json.encode(event)) == event


def test_the_union_names_every_event() -> None:
    assert {kind.__name__ for kind in get_args(Event)} == {
        "Submitted",
        "Rejection",
        "WaitReasonChanged",
        "Dispatched",
        "FirstToken",
        "TokensEmitted",
        "Finished",
        "KnobsChanged",
        "KnobsSatisfied",
        "StepRecorded",
        "DeviceSampled",
        "FairnessSampled",
        "CacheLooked",
    }
