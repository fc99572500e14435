"""`model.generate` as a bench's target: whole batches, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmserve.bench.load.workload import Load
from llmserve.bench.results.recorder import BenchRecorder
from llmserve.bench.results.report import Report
from llmserve.bench.results.slo import Slo
from llmserve.bench.run.driver import Progress
from llmserve.core.clock import MonotonicClock
from llmserve.core.events import EventBus, Finished, Submitted


class Batches:
    """`model.generate` as a target: whole batches in a process of its own, no stream, no queue.

    It has no first token to tell, and is given its prompts in batches as large as the load has
    places: a static batch at its best, for all replies are of one length.
    """

    sees_cache = False

    def __init__(self, process: subprocess.Popen[str], vocabulary: int) -> None:
        self.clock = MonotonicClock()
        self.bus = EventBus()
        self._process = process
        self.vocabulary = vocabulary

    @classmethod
    @contextmanager
    def open(cls, model: str, dtype: str) -> Iterator[Batches]:
        threads = str(len(os.sched_getaffinity(0)))
        script = str(Path(__file__).with_name("torch_rival.py"))
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                [sys.executable, script, "generate", model, threads, dtype],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=os.environ | {"OMP_WAIT_POLICY": "passive", "TQDM_DISABLE": "1"},
            )  # fmt: skip
            try:
                assert process.stdout is not None
                if not process.stdout.readline():
                    raise SystemExit("generate's process did not start")
                config = json.loads((Path(model) / "config.json").read_text())
                yield cls(process, config["vocab_size"])
            finally:
                process.kill()
                process.wait()

    def prepare(self, *_: object) -> Any:
        raise NotImplementedError("it drives itself")

    async def send(self, request: object) -> None:
        raise NotImplementedError("it drives itself")

    async def reset_cache(self) -> None:
        """It has none."""

    def drive(self, load: Load, slo: Slo | None) -> BatchRun:
        return BatchRun(self, load)

    def batch(self, prompts: list[list[int]], new: int) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "new": new}) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))


class BatchRun:
    """One run of Batches; satisfies `job.Driver`."""

    def __init__(self, target: Batches, load: Load) -> None:
        self._target, self._load = target, load
        self._recorder = BenchRecorder(everything=True, sees_cache=False)
        self._stopped = False

    @property
    def progress(self) -> Progress:
        sent, good, failed, tokens = self._recorder.counts
        return Progress(sent, good, failed, 1.0, tokens)

    def stop(self) -> None:
        self._stopped = True

    def report(self) -> Report:
        return self._recorder.report(str(self._load), interrupted=self._stopped)

    async def run(self) -> Report:
        arrivals, dice = list(self._load.arrivals()), random.Random(1)
        places, clock = self._load.clients or 1, self._target.clock
        for begin in range(0, len(arrivals), places):
            some = arrivals[begin : begin + places]
            length, new = some[0].prompt_tokens, some[0].max_tokens
            prompts = [[dice.randrange(3, self._target.vocabulary) for _ in range(length)]
                       for _ in some]  # fmt: skip
            started = clock.now()
            for number, _ in enumerate(some):
                self._recorder(Submitted(
                    t=started, request_id=f"{begin + number}", tenant="", priority=0,
                    prompt_tokens=length, max_tokens=new,
                ))  # fmt: skip
            await asyncio.to_thread(self._target.batch, prompts, new)
            for number, _ in enumerate(some):
                self._recorder(Finished(
                    t=clock.now(), request_id=f"{begin + number}", reason="length",
                    prompt_tokens=length, completion_tokens=new,
                ))  # fmt: skip
        return self.report()
