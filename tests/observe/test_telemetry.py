"""Telemetry: all standing folds of a session, read while they are written."""

from __future__ import annotations

import threading

from llmserve.core.clock import VirtualClock
from llmserve.core.events import EventBus
from llmserve.observe import Telemetry
from observe.tape import one_request, step, submitted


def test_all_folds_hear_the_bus_until_closed() -> None:
    bus, clock = EventBus(), VirtualClock(10)
    telemetry = Telemetry(bus, clock, model_name="m")
    for event in [*one_request(), step(7)]:
        bus.publish(event)
    assert telemetry.snapshot().t == 10
    assert telemetry.snapshot().ttft.n == 1
    assert len(telemetry.requests.rows()) == 1
    assert telemetry.steps.total == 1
    assert b'llmserve_generation_tokens_total{engine="0",model_name="m"} 4.0' in (
        telemetry.prometheus.render()
    )
    telemetry.close()
    bus.publish(submitted(20, "later"))
    assert telemetry.snapshot().waiting == 0


def test_folds_may_be_read_while_another_thread_writes() -> None:
    bus = EventBus()
    telemetry = Telemetry(bus, VirtualClock())
    rounds, broken, done = 2000, [], threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                snapshot = telemetry.stats.snapshot()
                behind = snapshot.generated_tokens_total - 4 * snapshot.finished.get("stop", 0)
                assert 0 <= behind <= 4, "a snapshot is of one moment"
                telemetry.requests.rows()
                telemetry.steps.records(limit=10)
                telemetry.prometheus.render()
        except BaseException as error:
            broken.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for index in range(rounds):
        for event in one_request(t=index / 1000, id=str(index)):
            bus.publish(event)
        bus.publish(step(index / 1000, index))
    done.set()
    reader.join()
    assert not broken
    assert telemetry.stats.snapshot().finished == {"stop": rounds}
