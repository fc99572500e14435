"""What the batch tape costs of vLLM's throughput: blocks with and without, turn by turn, one run.

    .venv-vllm/bin/python tests/benchmarks/vllm_tape_cost.py [--pairs 60] [--seconds 0.5]

Prints the ratio of throughputs with the tape and without it, and its 95 % interval over pairs. A
pair is four short blocks, on off off on or the other way round: the machine's own speed drifts
within seconds, and by more than what is looked for.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
from typing import Any

import llmserve
from llmserve.bench.results.intervals import interval
from llmserve.core.types import Request, SamplingParams
from llmserve.entrypoints.session.session import Session

SETTLE_S = 0.05
"""What is under way when the tape is turned: a few steps."""


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
        while True:
            number = next(self._numbers)
            # of many lengths: in step, they would all be prefilled in the same short block
            length = 60 + number * 37 % 240
            sampling = SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True)
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
    await asyncio.sleep(3)
    ratios = []
    for pair in range(pairs):
        counted, passed = {True: 0, False: 0}, {True: 0.0, False: 0.0}
        first = bool(pair % 2)
        for on in (first, not first, not first, first):
            await engine._call("llmserve_note", on)
            await asyncio.sleep(SETTLE_S)
            tokens, start = load.tokens, session.clock.now()
            await asyncio.sleep(seconds)
            counted[on] += load.tokens - tokens
            passed[on] += session.clock.now() - start
        speed = {on: counted[on] / passed[on] for on in counted}
        ratios.append(speed[True] / speed[False])
        if pair % 10 == 9:
            print(f"{pair + 1:4} pairs, ratio so far {statistics.fmean(ratios):.4f}", flush=True)
    load.stop()
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--model")
    asked = parser.parse_args()
    with llmserve.serve(
        asked.model, "vllm", max_num_seqs=32, max_num_seqs_ceiling=32, max_model_len=512
    ) as session:
        ratios = session.runtime.call(measure(session, asked.pairs, asked.seconds))
    found = interval(ratios)
    assert found is not None
    assert found.half is not None
    print(f"with the tape / without: {found.value:.4f} ± {found.half:.4f} (95 %), lower bound "
          f"{found.value - found.half:.4f}, median {statistics.median(ratios):.4f}, "
          f"{found.n} pairs")  # fmt: skip


if __name__ == "__main__":
    main()
