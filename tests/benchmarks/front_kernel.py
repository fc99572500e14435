"""Our server as a kernel has it, in a process that does nothing else: told what to do by lines.

Its engine steps in a child. It can compute in its main thread, as a cell does, and take a profile
of its serving thread.
"""

from __future__ import annotations

import argparse
import json
import select
import sys
from typing import Any

import llmserve
from benchmarks.front_profile import LayerProfile
from llmserve.core.events import Event, StepRecorded
from llmserve.core.types import StepRecord
from llmserve.entrypoints.session.session import Session


class Emissions:
    """When the engine ended each step, for each request: its k-th row is its k-th token."""

    def __init__(self) -> None:
        self._records: list[StepRecord] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepRecorded):
            self._records.append(event.record)

    def take(self) -> dict[str, list[tuple[float, float]]]:
        records, self._records = self._records, []
        found: dict[str, list[tuple[float, float]]] = {}
        for record in records:
            span = (record.start_s, record.start_s + record.duration_s)
            for row in record.rows:
                found.setdefault(row.request_id, []).append(span)
        return found


def answer(line: str, session: Session, emissions: Emissions, profile: LayerProfile) -> object:
    match line.strip():
        case "steps":
            return emissions.take()
        case "profile":
            session.runtime.call(profile.start())
        case "profiled":
            return session.runtime.call(profile.stop())
        case "cell":  # until the next line comes
            number = 0
            while not select.select([sys.stdin], [], [], 0)[0]:
                for number in range(20_000):
                    number * number
            sys.stdin.readline()
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-ms", type=float, required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--set", type=json.loads, default={})
    asked = parser.parse_args()
    options: dict[str, Any] = {
        "prefill_ms": 0.0, "decode_ms": asked.step_ms, "process": True, "max_model_len": 65_536,
        "kv_capacity_tokens": 50_000_000, "max_num_seqs_ceiling": asked.streams,
        "max_num_seqs": asked.streams, "max_num_batched_tokens": 16_384,
    }  # fmt: skip
    with llmserve.serve(engine="simulator", **(options | asked.set)) as session:
        emissions, profile = Emissions(), LayerProfile()
        session.bus.attach(emissions)
        told = {"url": session.url, "key": session.api_key, "model": session.info.model_id,
                "pids": session.info.pids}  # fmt: skip
        _say(told)
        while line := sys.stdin.readline():
            _say(answer(line, session, emissions, profile))


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
