"""An hour of traffic through the driver, on virtual time: what it leaves behind does not grow."""

from __future__ import annotations

import asyncio
import gc
import itertools

import pytest

from llmserve.bench.load.workload import Arrival, Workload
from llmserve.bench.results import recorder as recording
from llmserve.bench.results.report import Report
from llmserve.bench.run.driver import Bench
from llmserve.core.clock import VirtualClock
from llmserve.core.events import (
    Dispatched,
    EventBus,
    Finished,
    FirstToken,
    Submitted,
    TokensEmitted,
)
from llmserve.core.types import Request, SamplingParams


class Answering:
    """A target that answers each request with two tokens, and computes nothing."""

    sees_cache = True

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.bus = EventBus()
        self._ids = itertools.count()

    def prepare(self, arrival: Arrival, run_salt: int, said: object = None) -> object:
        sampling = SamplingParams(max_tokens=2)
        name = f"r-{next(self._ids)}"
        return lambda when: Request(id=name, prompt_ids=(1,), sampling=sampling, arrival=when)

    async def send(self, request: Request) -> None:
        publish, name = self.bus.publish, request.id
        publish(Submitted.of(request))
        publish(Dispatched(t=self.clock.now(), request_id=name))
        await self.clock.sleep_until(request.arrival + 0.05)
        now = self.clock.now()
        publish(FirstToken(t=now, request_id=name))
        publish(TokensEmitted(t=now, counts={name: 1}))
        publish(TokensEmitted(t=now, counts={name: 1}))
        publish(Finished(
            t=now, request_id=name, reason="length", prompt_tokens=1, completion_tokens=2
        ))  # fmt: skip

    async def reset_cache(self) -> None:
        """There is none."""


def test_an_hour_leaves_nothing_behind_but_its_samples_and_they_have_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a hundredth of the samples that are kept, so that all of them are overwritten."""
    monkeypatch.setattr(recording, "GAPS", recording.GAPS // 100)
    monkeypatch.setattr(recording, "REQUESTS", recording.REQUESTS // 100)
    clock = VirtualClock()
    objects: list[int] = []

    async def count() -> None:
        for minute in (10, 30, 59):
            await clock.sleep_until(minute * 60.0)
            gc.collect()
            objects.append(len(gc.get_objects()))

    async def main() -> tuple[Report, Bench]:
        bench = Bench(Answering(clock), Workload(rate=5, duration_s=3600.0))  # type: ignore[arg-type]  # it prepares objects
        counting = asyncio.create_task(count())
        report = await bench.run()
        await counting
        return report, bench

    gc.collect()
    gc.freeze()  # what other tests left counts for nothing, and may end meanwhile
    try:
        report, bench = clock.run(main())
    finally:
        gc.unfreeze()
    assert report.n == report.sent > 17_000
    assert report.capped
    assert max(objects) - min(objects) < 1500, "15,000 requests went by"
    kept = (bench._recorder._gaps, bench._recorder._firsts, bench._recorder._ends)
    assert [len(s.window(-1.0, 1e9)) for s in kept] == [
        recording.GAPS, recording.REQUESTS, recording.REQUESTS
    ]


def test_an_hour_at_100_a_second_is_kept_whole() -> None:
    assert recording.REQUESTS > 100 * 3600
