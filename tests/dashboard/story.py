"""A real service on the simulator and virtual time behind a desk: what a dashboard shows of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence

from dashboard.parts import Desk
from llmserve.bench.load.workload import Workload
from llmserve.bench.run.driver import Bench, ServiceTarget
from llmserve.core.knobs import Knobs
from llmserve.engines.simulator.engine import SimulatorEngine
from llmserve.serving.publisher import publish_step
from llmserve.serving.service import Service


def tell(
    desk: Desk,
    workloads: Sequence[Workload],
    seconds: float,
    *,
    changes: Mapping[float, Mapping[str, object]] | None = None,
    each: Callable[[], None] | None = None,
) -> None:
    """Serve the workloads for so long, sampling five times a second; knobs change at their times.

    `each` runs after every sample, on the loop's thread.
    """
    parts = desk.parts

    async def main() -> None:
        engine = SimulatorEngine(
            sink=lambda record: publish_step(parts.bus, record), clock=parts.clock,
            prefill_ms=12, decode_ms=10,
        )
        service = Service(engine, parts.board, parts.bus, parts.clock)
        await service.start()
        target = ServiceTarget(service, parts.bus)
        loads = [asyncio.ensure_future(Bench(target, w).run()) for w in workloads]
        began, due = parts.clock.now(), dict(changes or {})
        for tick in itertools.count(1):
            await parts.clock.sleep_until(began + 0.2 * tick)
            for when in [when for when in due if when <= 0.2 * tick]:
                await service.set_knobs(due.pop(when), source="slider")
            parts.sample_host(1.0 + 0.001 * (tick % 50))
            desk.recorder.sample()
            if each is not None:
                each()
            if tick * 0.2 >= seconds:
                break
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        await service.stop()

    parts.clock.run(main())


def burst(desk: Desk) -> None:
    """A calm load under a low cap, a burst that must wait, and the cap raised while it waits."""
    calm = Workload(rate=6, duration_s=24, prompt_tokens=(20, 200), max_tokens=(8, 80))
    crowd = Workload(
        concurrency=60, requests=120, prompt_tokens=(20, 300), max_tokens=(8, 60), tenant="gold",
        priority=1, seed=2,
    )
    desk.parts.board.update(["max_num_seqs"], Knobs(max_num_seqs=4))
    tell(desk, [calm], 8)
    tell(desk, [calm, crowd], 10, changes={5.0: {"max_num_seqs": 32}})
