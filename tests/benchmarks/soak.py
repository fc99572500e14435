"""An unruly crowd at most of the front's rate, for minutes: what leaks, stalls or is kept waiting.

    cd tests && python -m benchmarks.soak [--minutes 10] [--clients 1000] [--share 0.8]

The simulator steps in a process of its own, and the clients run in a third. First it finds the
front's rate with clients that all read; then the honest clients run alone, and then beside the
crowd, which leaves, resets, half-closes, reads slowly, never reads or says nothing, while the
stream interval is turned. Its steps are as long as the share of the rate asks. Exit status 1 where
anything leaked, an honest client had another text than unstreamed, or no end.

A stall is a turn of the serving loop that came more than 50 ms late. The machine's own are counted
by a process that only sleeps.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import llmserve
from benchmarks.memory_figures import memory_figures
from benchmarks.servers import machine
from llmserve.entrypoints.session.session import Session
from support.leaks import Held, held, rss_bytes
from support.unruly import LEAVERS, READERS, Unruly, crowd

HONEST = 32
STALL_S = 0.05
MOST_PLACES = 1024
"""The knob takes no more; who comes then waits."""
_BEAT_S = 0.005
_REST_S = 3.0
_INTERVALS_MS = (50.0, 20.0, 50.0, 5.0)
_SLEEPER = f"""
import sys, time, threading
late = 0
threading.Thread(target=lambda: (sys.stdin.read(), done.append(1)), daemon=True).start()
done = []
while not done:
    before = time.monotonic(); time.sleep({_BEAT_S})
    late += time.monotonic() - before > {_BEAT_S + STALL_S}
print(late)
"""


def serving(decode_ms: float, clients: int) -> Session:
    places = min(MOST_PLACES, 2 * clients)  # a reader of three choices takes three
    return llmserve.serve(
        engine="simulator", process=True, prefill_ms=0.0, decode_ms=decode_ms,
        kv_capacity_tokens=10_000_000, max_num_seqs_ceiling=places, max_num_seqs=places,
        max_num_batched_tokens=16_384,
    )  # fmt: skip


class Stalls:
    """Turns of the serving loop, and of a process that only sleeps, that came too late."""

    def __init__(self) -> None:
        self.own, self.machines = 0, 0
        self.longest_collection_s, self._began = 0.0, 0.0

    def _collects(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.monotonic()
        else:
            took = time.monotonic() - self._began
            self.longest_collection_s = max(self.longest_collection_s, took)

    @contextlib.contextmanager
    def counted(self, session: Session) -> Iterator[None]:
        async def beat() -> None:
            while not over.is_set():
                before = time.monotonic()
                await asyncio.sleep(_BEAT_S)
                self.own += time.monotonic() - before > _BEAT_S + STALL_S

        over = threading.Event()
        sleeper = subprocess.Popen(
            [sys.executable, "-c", _SLEEPER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        beating = threading.Thread(target=session.runtime.call, args=(beat(),))
        beating.start()
        gc.callbacks.append(self._collects)
        try:
            yield
        finally:
            gc.callbacks.remove(self._collects)
            over.set()
            beating.join()
            told, _ = sleeper.communicate()
            self.machines += int(told)


def clients(session: Session, kinds: dict[str, int], seconds: float) -> dict[str, Any]:
    """Run so many clients in a process of their own; what they met."""
    asked = {
        "port": urlsplit(session.url).port, "key": session.api_key, "kinds": kinds,
        "seconds": seconds,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--as-clients", json.dumps(asked)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    met: dict[str, Any] = json.loads(done.stdout)
    return met


def be_clients(asked: dict[str, Any]) -> None:
    async def main() -> None:
        await unruly.learn(8)
        await crowd(unruly, asked["kinds"], asked["seconds"], 1)

    unruly = Unruly(asked["port"], asked["key"], max_tokens=100)
    asyncio.run(main())
    seen = unruly.seen
    told = {"kinds": seen.kinds, "failed": seen.failed, "wrong": seen.wrong, "gaps": seen.gaps_ms}
    print(json.dumps(told))


def front_rate(number: int) -> float:
    """Tokens per second to clients that all read, from an engine that is never what limits."""
    seen, over = list[tuple[float, int]](), threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            seen.append((time.monotonic(), session.stats().generated_tokens_total))

    with serving(1.0, number) as session:
        watching = threading.Thread(target=watch)
        watching.start()
        clients(session, {"reads": min(number, 256)}, 10)
        over.set()
        watching.join()
    pairs = zip(seen, seen[8:], strict=False)
    return max((after - before) / (end - start) for (start, before), (end, after) in pairs)


def kinds_of(number: int) -> dict[str, int]:
    """Half of the crowd reads, and half does not."""
    readers = {kind: number // 8 for kind in READERS if kind != "reads"}
    return readers | dict.fromkeys(LEAVERS, number // (2 * len(LEAVERS)))


def turn_interval(session: Session, over: threading.Event) -> None:
    draw = random.Random(1)
    while not over.wait(0.5):
        session.set(stream_interval_ms=draw.choice(_INTERVALS_MS))


def settled(session: Session, before: Held) -> dict[str, int]:
    end = time.monotonic() + 60
    while (more := held(session).beyond(before)) and time.monotonic() < end:
        time.sleep(0.5)
    return more


def quantiles(values: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(values, n=100)
    return cuts[49], cuts[98]


def soak(options: argparse.Namespace, rate: float) -> bool:
    """The table; whether all was well."""
    seconds = options.minutes * 60
    # a reader takes about half of its time to connect and to wait, and leavers take no tokens
    streaming = options.clients / 2 + HONEST
    decode_ms = max(1.0, 1e3 * streaming / (options.share * rate))
    stalls, over = Stalls(), threading.Event()
    with serving(decode_ms, options.clients) as session:
        alone = clients(session, {"reads": HONEST}, max(10.0, seconds / 5))
        time.sleep(_REST_S)
        before, grown = held(session), [rss_bytes()]
        tokens = session.stats().generated_tokens_total
        turning = threading.Thread(target=turn_interval, args=(session, over))
        watching = threading.Thread(target=watch_rss, args=(grown, over))
        turning.start()
        watching.start()
        with stalls.counted(session):
            met = clients(session, {"reads": HONEST} | kinds_of(options.clients), seconds)
        over.set()
        turning.join()
        watching.join()
        leaked = settled(session, before)
        tokens = session.stats().generated_tokens_total - tokens
    half = len(grown) // 2
    growth = (grown[-1] - grown[half]) / max(1, len(grown) - 1 - half) * 60 / 1e6
    (p50, p99), (p50_alone, p99_alone) = quantiles(met["gaps"]), quantiles(alone["gaps"])
    print(
        f"\n| {options.minutes:g} minutes, {options.clients} clients beside {HONEST} | |\n|---|---|"
    )
    for name in Held._fields:
        print(f"| leaked {name} | {leaked.get(name, 0)} |")
    print(f"| wrong or endless answers | {len(met['wrong'])} |")
    print(f"| refusals and errors | {met['failed'] or 0} |")
    print(f"| tokens/s, of {rate:,.0f} | {tokens / seconds:,.0f} ({decode_ms:.1f} ms a step) |")
    print(f"| clients | {sum(met['kinds'].values()):,} |")
    print(f"| RSS growth in the second half, MB a minute | {growth:.2f} |")
    print(f"| stalls over 50 ms (the machine's own) | {stalls.own} ({stalls.machines}) |")
    print(f"| longest garbage collection, ms | {stalls.longest_collection_s * 1e3:.0f} |")
    print(f"| honest ITL p50, ms: with the crowd / without | {p50:.1f} / {p50_alone:.1f} |")
    print(f"| honest ITL p99, ms: with the crowd / without | {p99:.1f} / {p99_alone:.1f} |")
    for one in met["wrong"][:10]:
        print(one)
    return not (leaked or met["wrong"] or alone["wrong"])


def watch_rss(grown: list[int], over: threading.Event) -> None:
    """Once a second."""
    while not over.wait(1.0):
        grown.append(rss_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--share", type=float, default=0.8, help="of the front's rate")
    parser.add_argument("--no-memory", action="store_true", help="leave the figures of memory out")
    parser.add_argument("--as-clients", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.as_clients:
        be_clients(options.as_clients)
        return
    print(machine(), flush=True)
    rate = front_rate(options.clients)
    fine = soak(options, rate)
    if not options.no_memory:
        memory_figures()
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
