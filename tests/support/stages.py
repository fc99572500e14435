"""Runs the stages of `make test`, some beside each other, and says at the end how long each took.

    python tests/support/stages.py "venv" "lint widgets | vllm-packages" "unit"

Each argument is a phase. A phase's lanes, between the bars, run at the same time, and a lane's
stages one after another; a stage is a target of make. What runs alone speaks as it goes; what
runs beside others is printed whole when it has ended. A lane ends with its first failure, the run
with the first phase in which one failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Run:
    command: Sequence[str]
    """A stage's name is put behind it."""
    table: list[tuple[str, float, int]] = field(default_factory=list)
    """Stage, seconds and exit status, as they end."""
    _printing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def failed(self) -> list[str]:
        return [stage for stage, _, status in self.table if status]

    def phase(self, lanes: Sequence[Sequence[str]]) -> None:
        beside = len(lanes) > 1
        threads = [threading.Thread(target=self._lane, args=(lane, beside)) for lane in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _lane(self, stages: Sequence[str], beside: bool) -> None:
        for stage in stages:
            if not self._stage(stage, beside):
                return

    def _stage(self, stage: str, beside: bool) -> bool:
        began = time.monotonic()
        if not beside:
            self._say(f"== {stage}")
        output = subprocess.PIPE if beside else None
        done = subprocess.run(
            [*self.command, stage], stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT if beside else None,
        )  # fmt: skip
        took = time.monotonic() - began
        if beside:
            self._say(f"== {stage}", done.stdout)
        self.table.append((stage, took, done.returncode))
        return done.returncode == 0

    def _say(self, heading: str, output: bytes = b"") -> None:
        with self._printing:
            sys.stdout.write(heading + "\n")
            sys.stdout.flush()
            sys.stdout.buffer.write(output)
            sys.stdout.flush()


def parse(phase: str) -> list[list[str]]:
    return [lane.split() for lane in phase.split("|")]


def minutes(seconds: float) -> str:
    return f"{int(seconds) // 60:3d}:{int(seconds) % 60:02d}"


def main(phases: Sequence[str]) -> int:
    run = Run((os.environ.get("MAKE", "make"), "--no-print-directory"))
    began = time.monotonic()
    for phase in phases:
        run.phase(parse(phase))
        if run.failed:
            break
    print("\nstage               min:s")
    for stage, took, status in run.table:
        print(f"{stage:<19}{minutes(took)}{'  FAILED' if status else ''}")
    print(f"{'together':<19}{minutes(time.monotonic() - began)}")
    print(f"failed: {', '.join(run.failed)}" if run.failed else "all tests passed")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
