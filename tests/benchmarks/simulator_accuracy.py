"""How far the simulator's real time is from its virtual time: run it on a quiet machine.

    python tests/benchmarks/simulator_accuracy.py

Each line is one run of the classic waves (16 places, 32 tokens each) for about a second. It exits
with 1 when a run of steps of 5 ms or more is off by over 3 %.
"""

from __future__ import annotations

import asyncio
import sys

from llmserve.core.clock import Clock, MonotonicClock, VirtualClock
from llmserve.core.knobs import Knobs
from llmserve.core.types import Request, SamplingParams
from llmserve.engines.simulator.engine import SimulatorEngine

TOLERANCE = 0.03
COSTS_MS = [(25.0, 10.0), (10.0, 5.0), (5.0, 2.0), (2.0, 1.0), (1.0, 0.5)]


async def makespan(clock: Clock, requests: int, prefill_ms: float, decode_ms: float) -> float:
    engine = SimulatorEngine(
        sink=lambda record: None, clock=clock, prefill_ms=prefill_ms, decode_ms=decode_ms
    )
    await engine.start()
    await engine.apply(Knobs(max_num_seqs=16))

    async def ask(index: int) -> None:
        sampling = SamplingParams(max_tokens=32)
        request = Request(
            id=str(index), prompt_ids=(1,) * 16, sampling=sampling, arrival=clock.now()
        )
        await engine.generate(request, lambda chunk: None)

    started = clock.now()
    await asyncio.gather(*map(ask, range(requests)))
    elapsed = clock.now() - started
    await engine.stop()
    return elapsed


def main() -> int:
    worst = 0.0
    print(f"{'prefill ms':>10} {'decode ms':>10} {'virtual s':>10} {'real s':>10} {'off':>8}")
    for prefill_ms, decode_ms in COSTS_MS:
        wave_s = (prefill_ms + 31 * decode_ms) / 1e3
        requests = 16 * max(1, round(1.0 / wave_s))
        virtual = VirtualClock()
        exact = virtual.run(makespan(virtual, requests, prefill_ms, decode_ms))
        real = asyncio.run(makespan(MonotonicClock(), requests, prefill_ms, decode_ms))
        off = real / exact - 1
        print(f"{prefill_ms:>10g} {decode_ms:>10g} {exact:>10.3f} {real:>10.3f} {off:>8.2%}")
        if decode_ms >= 5:
            worst = max(worst, abs(off))
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
