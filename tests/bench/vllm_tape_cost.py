"""What the batch tape costs of vLLM's throughput: blocks with and without, turn by turn, one run.

    .venv-vllm/bin/python tests/bench/vllm_tape_cost.py [--pairs 20] [--seconds 3]

Prints the ratio of throughputs with the tape and without it, and its 95 % interval over pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import statistics
from typing import Any

import llmserve
from llmserve.core import Request, SamplingParams
from llmserve.session import Session

T_95 = 2.1
"""Student's factor for about 20 pairs."""


class Load:
    """`concurrency` requests in the engine at any time; counts the tokens that come."""

    def __init__(self, session: Session, concurrency: int) -> None:
        self.tokens = 0
        self._session = session
        self._numbers = itertools.count()
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(concurrency)]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _ask(self) -> None:
        sampling = SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True)
        while True:
            number = next(self._numbers)
            request = Request(
                id=f"load-{number}",
                prompt_ids=tuple((number * 31 + k * 7) % 900 + 10 for k in range(100)),
                sampling=sampling,
                arrival=self._session.clock.now(),
            )
            stream = self._session.service.submit(request)
            try:
                async for chunk in stream:
                    self.tokens += len(chunk.token_ids)
            finally:
                stream.cancel()


async def measure(session: Session, pairs: int, seconds: float) -> list[float]:
    engine: Any = session.service.engine
    load = Load(session, 32)
    await asyncio.sleep(seconds)
    ratios = []
    for pair in range(pairs):
        speed = {}
        for on in (True, False) if pair % 2 else (False, True):
            await engine._call("llmserve_note", on)
            await asyncio.sleep(0.2)
            tokens, start = load.tokens, session.clock.now()
            await asyncio.sleep(seconds)
            speed[on] = (load.tokens - tokens) / (session.clock.now() - start)
        ratios.append(speed[True] / speed[False])
        print(f"{speed[True]:7.0f} {speed[False]:7.0f} {ratios[-1]:.4f}", flush=True)
    load.stop()
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--model")
    asked = parser.parse_args()
    with llmserve.serve(
        asked.model, "vllm", max_num_seqs=32, max_num_seqs_ceiling=32, max_model_len=512
    ) as session:
        ratios = session.runtime.call(measure(session, asked.pairs, asked.seconds))
    mean = statistics.fmean(ratios)
    half = T_95 * statistics.stdev(ratios) / math.sqrt(len(ratios))
    print(f"with the tape / without: {mean:.4f} ± {half:.4f} (95 %), median "
          f"{statistics.median(ratios):.4f}, {len(ratios)} pairs")  # fmt: skip


if __name__ == "__main__":
    main()
