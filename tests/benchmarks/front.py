"""The front at a GPU's pace: what our server costs for each token and request, beside its limits.

    cd tests && python -m benchmarks.front [--streams 1 32 256 1024] [--steps 100 100 50 20]
        [--blocks 5] [--set stream_interval_ms=0] [--vllm ../.venv-vllm/bin/python] [--profile]

An engine in a child process emits at a set pace and computes nothing: the simulator with
`process=True`. A lean client reads in a third process. Beside it runs a bare loop that writes the
same frames, ready-made, to as many sockets, 200 steps a second: one word in each, and several. The
sides take turns in blocks, every second block the other way round; ratios are Student's t over the
blocks. A cell that computes holds the interpreter's lock as much as it can.

CPU is that of the answering process alone. A token's delay is from the end of its step, as the
engine recorded it, to the client's clock: CLOCK_MONOTONIC is one for all processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.front_sides import Cpu, FrontSide, Process, bare, ours, vllm
from benchmarks.servers import machine
from llmserve.bench.results.intervals import interval
from llmserve.core.validation import literal

SETTLE_S = 0.7
"""After the first word of the last stream: the rush of the beginning is over."""
PLACES = 32


@dataclass
class Found:
    """Of one side, block by block."""

    rate: list[float] = field(default_factory=list)
    user_us: list[float] = field(default_factory=list)
    system_us: list[float] = field(default_factory=list)
    client_us: list[float] = field(default_factory=list)
    delays_ms: list[float] = field(default_factory=list)
    words_a_frame: list[float] = field(default_factory=list)

    def took(self, before: Cpu, after: Cpu, number: int) -> None:
        """The whole to the nanosecond; its parts in the proportion of their hundredths."""
        user, system = after.user - before.user, after.system - before.system
        share = user / (user + system) if user + system else 1.0
        whole = (after.whole - before.whole) / number * 1e6
        self.user_us.append(whole * share)
        self.system_us.append(whole * (1 - share))

    def cpu(self) -> list[float]:
        return [user + system for user, system in zip(self.user_us, self.system_us, strict=True)]


def stream_block(
    side: FrontSide, client: Process, streams: int, seconds: float, found: Found, *, cell: bool
) -> None:
    """One block: what came in a window in which all the streams run."""
    client.tell(json.dumps(side.asked(do="streams", streams=streams)))
    assert client.hear() == "begun"
    if cell and side.process is not None:
        side.process.tell("cell")
    time.sleep(SETTLE_S)
    start, before = time.monotonic(), side.cpu()
    time.sleep(seconds)
    end, after = time.monotonic(), side.cpu()
    if cell and side.process is not None:
        side.process.tell("")
        side.process.hear()
    client.tell("close")
    told = client.hear()
    busy = client.hear()
    words = frames = 0
    for one in told["streams"]:
        inside = [n for t, n in zip(one["times"], one["words"], strict=True) if start <= t < end]
        words += sum(inside)
        frames += one["frames"]
    every = sum(sum(one["words"]) for one in told["streams"])
    assert words, f"{side.name}: nothing came in the window"
    found.rate.append(words / (end - start))
    found.took(before, after, words)
    found.client_us.append(busy / every * 1e6)
    found.words_a_frame.append(every / max(1, frames))
    if side.name == "llmserve" and side.process is not None:
        side.process.tell("steps")
        found.delays_ms += delays(told["streams"], side.process.hear(), start, end)
    time.sleep(0.5)  # those that left are forgotten


def delays(
    streams: list[dict[str, Any]], steps: dict[str, list[list[float]]], start: float, end: float
) -> list[float]:
    """Of each token that came in the window, from the end of its step, in ms."""
    found = []
    for one in streams:
        ends = [step[1] for step in steps.get(one["id"], ())]
        counts = accumulate(one["words"])
        for came, words, count in zip(one["times"], one["words"], counts, strict=True):
            if start <= came < end:
                found += [(came - at) * 1e3 for at in ends[count - words : count]]
    return found


def request_block(
    side: FrontSide, client: Process, seconds: float, found: Found, *, stream: bool, places: int
) -> list[float]:
    """Requests of one token in closed loops; of each, in ms, what is not its step."""
    before = side.cpu()
    asked = side.asked(
        do="requests", stream=stream, places=places, seconds=seconds, max_tokens=1
    )
    client.tell(json.dumps(asked))
    told = client.hear()
    after, busy = side.cpu(), client.hear()
    number = len(told)
    found.rate.append(number / seconds)
    found.took(before, after, number)
    found.client_us.append(busy / number * 1e6)
    if side.name != "llmserve" or side.process is None:
        return []
    side.process.tell("steps")
    steps = side.process.hear()
    return [
        (came - sent - (steps[one][0][1] - steps[one][0][0])) * 1e3
        for one, sent, came in told
        if one in steps
    ]


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def shown(values: list[float], form: str) -> str:
    told = interval(values)
    if told is None:
        return "-"
    return f"{told.value:{form}}" + ("" if told.half is None else f" ± {told.half:{form}}")


def row(name: str, found: Found, base: Found | None, unit: str) -> str:
    ratio = "-"
    if base is not None and base is not found:
        ratio = shown([a / b for a, b in zip(found.rate, base.rate, strict=True)], ".2f")
    delay = "-"
    if found.delays_ms:
        delay = " / ".join(f"{percentile(found.delays_ms, share):.2f}" for share in (0.5, 0.99))
    frame = statistics.mean(found.words_a_frame) if found.words_a_frame else 1.0
    return (
        f"| {name} | {shown(found.rate, ',.0f')} {unit} | {ratio} | {shown(found.cpu(), '.1f')} | "
        f"{statistics.mean(found.user_us):.1f} + {statistics.mean(found.system_us):.1f} | "
        f"{delay} | {frame:.1f} | {statistics.mean(found.client_us):.1f} |"
    )


HEAD = (
    "| side | rate | llmserve / it | CPU µs each | user + system | delay p50 / p99, ms | "
    "tokens a frame | client's µs |\n|---|---|---|---|---|---|---|---|"
)


@contextlib.contextmanager
def sides(
    options: argparse.Namespace, streams: int, steps: float
) -> Iterator[list[tuple[str, FrontSide, bool]]]:
    """Those of one setting, up at once, with their names; and whether a cell computes beside."""
    step_ms = 1e3 / steps
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        mine = enter(ours(streams, step_ms, options.set))
        every = [(mine.name, mine, False), ("llmserve, a cell computes", mine, True)]
        for words in (1, options.words):
            limit = enter(bare(1e3 / options.bare_steps, words))
            every.append((limit.name, limit, False))
        if options.vllm and streams <= options.peer_streams:
            peer = enter(vllm(options.vllm, streams, options.interval))
            every.append((peer.name, peer, False))
        yield every


def streams_table(options: argparse.Namespace, client: Process, streams: int, steps: float) -> None:
    with sides(options, streams, steps) as every:
        found = {name: Found() for name, _, _ in every}
        for block in range(options.blocks):
            for name, side, cell in every[:: -1 if block % 2 else 1]:
                stream_block(side, client, streams, options.seconds, found[name], cell=cell)
        print(f"\n{streams} streams at {steps:g} steps/s ({streams * steps:,.0f} tokens/s)\n")
        print(HEAD)
        for name, one in found.items():
            # the ratio is ours to theirs, so it is turned round
            turned = "-" if name == "llmserve" else shown(
                [a / b for a, b in zip(found["llmserve"].rate, one.rate, strict=True)], ".2f"
            )
            print(row(name, one, None, "tokens/s").replace("| - |", f"| {turned} |", 1))
        sys.stdout.flush()
        if options.profile:
            profile(every[0][1], client, streams, options.seconds)


def profile(side: FrontSide, client: Process, streams: int, seconds: float) -> None:
    assert side.process is not None
    side.process.tell("profile")
    side.process.hear()
    found = Found()
    stream_block(side, client, streams, seconds, found, cell=False)
    side.process.tell("profiled")
    told = side.process.hear()
    whole = sum(told["layer"].values())
    print(f"\nunder the profiler {found.cpu()[0]:.0f} µs for each token:")
    for what, seconds_of in told.items():
        print(f"\nthe serving thread by {what}:")
        for name, taken in seconds_of.items():
            print(f"  {taken / whole:6.1%} {name}")


def requests_table(options: argparse.Namespace, client: Process) -> None:
    with contextlib.ExitStack() as stack:
        mine = stack.enter_context(ours(PLACES, 1.0, options.set))
        every = [mine]
        if options.vllm:
            every.append(stack.enter_context(vllm(options.vllm, PLACES, 1)))
        found: dict[str, Found] = {}
        lone = list[float]()
        for block in range(options.blocks):
            for side in every[:: -1 if block % 2 else 1]:
                for stream, places in ((False, PLACES), (True, PLACES), (True, 1)):
                    how = f"{side.name}, {places} at once" + (", streamed" if stream else "")
                    one = found.setdefault(how, Found())
                    late = request_block(
                        side, client, options.seconds, one, stream=stream, places=places
                    )
                    one.delays_ms += late
                    lone += late if places == 1 else []
        print("\nrequests of one token, over kept connections\n")
        print(HEAD)
        for name, one in found.items():
            print(row(name, one, None, "requests/s"))
        told = " / ".join(f"{percentile(lone, share):.2f}" for share in (0.5, 0.99))
        print(f"added TTFT of one client alone, p50 / p99: {told} ms", flush=True)


def knob(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    return name, literal(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 32, 256, 1024])
    parser.add_argument("--steps", type=float, nargs="+", default=[100, 100, 50, 20])
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--bare-steps", type=float, default=200, help="of the bare loops a second")
    parser.add_argument("--words", type=int, default=5, help="a frame of the second bare loop")
    parser.add_argument("--set", type=knob, nargs="*", default=[], help="name=value for serve")
    parser.add_argument("--vllm", type=Path, help="the Python of an environment with vLLM")
    parser.add_argument("--interval", type=int, default=1, help="vLLM's stream interval")
    parser.add_argument("--peer-streams", type=int, default=256, help="peers up to so many")
    parser.add_argument("--no-requests", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    options.set = dict(options.set)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the servers would stay
    client = Process("front_client")
    with contextlib.closing(client):
        print(f"{machine()}; load {os.getloadavg()[0]:.1f}; {options.blocks} blocks of "
              f"{options.seconds:g} s a side; knobs: {options.set or 'as they are'}")  # fmt: skip
        for number, streams in enumerate(options.streams):
            steps = options.steps[min(number, len(options.steps) - 1)]
            streams_table(options, client, streams, steps)
        if not options.no_requests:
            requests_table(options, client)


if __name__ == "__main__":
    main()
