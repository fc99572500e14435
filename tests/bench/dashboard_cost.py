"""What a dashboard costs. On a quiet machine:

    PYTHONPATH=src:tests python tests/bench/dashboard_cost.py [--only updates|frames|throughput]

updates: kernel CPU and bytes of each kind of message, under a recorded load on virtual time.
frames: a real Chromium shows a recorded stream with the engine off, five updates a second; the
times between animation frames tell how fluid the page is.
throughput: a session with a dashboard whose headless reader drains it, against the same session
without, in interleaved blocks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import llmserve
from llmserve.bench.workload import Workload
from llmserve.ui import Dashboards
from llmserve.ui.link import PATIENCE_S
from llmserve.ui.series import CAPACITY
from ui.browser import screen
from ui.parts import Desk, Wire
from ui.story import tell

MIXED = Workload(rate=40, duration_s=10_000, prompt_tokens=(20, 300), max_tokens=(8, 100))
BLOCKS, BLOCK_S, STREAMS = 10, 3.0, 32


def size(message: tuple[dict[str, Any], list[bytes]]) -> int:
    content, buffers = message
    return len(json.dumps(content)) + sum(map(len, buffers))


def percentile(values: list[float], rank: float) -> float:
    return sorted(values)[min(len(values) - 1, int(rank / 100 * len(values)))]


def line(name: str, *figures: str) -> None:
    print(f"{name:<34}" + "   ".join(figures), flush=True)


def updates(seconds: float = 120.0) -> None:
    """40 requests a second, about 90 steps a second; a page that listens all the while."""
    desk = Desk.lay()
    desk.parts.board.update({"max_num_seqs": 64})
    sizes: dict[str, list[int]] = {"delta": [], "why": [], "tape": []}
    cpu: list[float] = []
    desk.wire.hear({"kind": "hello"})
    began = [time.thread_time()]

    def push() -> None:
        desk.charts.push()
        cpu.append(time.thread_time() - began[0])
        for message in desk.wire.take_all():
            if message[0]["kind"] in sizes:
                sizes[message[0]["kind"]].append(size(message))
        desk.wire.hear({"kind": "ack", "seq": desk.charts._link.seq})

    sample = desk.recorder.sample

    def timed() -> None:
        began[0] = time.thread_time()
        sample()

    desk.recorder.sample = timed  # type: ignore[method-assign]  # the clock starts with it
    tell(desk, [MIXED], seconds, each=push)
    ms = [1e3 * value for value in cpu]
    line(
        "kernel CPU per update (ms)", f"p50 {statistics.median(ms):.2f}",
        f"mean {statistics.fmean(ms):.2f}", f"p95 {percentile(ms, 95):.2f}", f"n {len(ms)}",
    )
    for kind, found in sizes.items():
        if found:
            line(
                f"bytes per {kind} message", f"p50 {statistics.median(found):,.0f}",
                f"max {max(found):,}", f"n {len(found)}",
            )


def frames(seconds: float = 20.0) -> None:
    """12 panels, 3,000 rows behind them, the tape in sight."""
    desk = Desk.lay()
    tell(desk, [MIXED], CAPACITY * 0.2 / 10)
    for _ in range(CAPACITY):  # the rest at rest: what is drawn is the same either way
        desk.parts.clock.advance(0.2)
        desk.recorder.sample()
    with screen(desk, 1280, 1300) as shown:
        shown.start()
        shown.page.locator("[data-llmserve=window]").select_option("600")
        stream: list[list[tuple[dict[str, Any], list[bytes]]]] = []

        def keep() -> None:
            desk.charts.push()
            stream.append(desk.wire.take_all())
            desk.wire.hear({"kind": "ack", "seq": desk.charts._link.seq})

        tell(desk, [MIXED], seconds, each=keep)
        shown.page.evaluate(
            "() => { window.frames_ms = []; let last = performance.now();"
            " const tick = (now) => { window.frames_ms.push(now - last); last = now;"
            " requestAnimationFrame(tick); }; requestAnimationFrame(tick); }"
        )
        began = time.monotonic()
        for i, messages in enumerate(stream):
            shown.page.wait_for_timeout(max(0.0, 1e3 * (began + 0.2 * i - time.monotonic())))
            for content, buffers in messages:
                shown.deliver(content, buffers)
        found: list[float] = shown.page.evaluate("() => window.frames_ms.slice(5)")
    line(
        "time between frames (ms)", f"p50 {statistics.median(found):.1f}",
        f"p95 {percentile(found, 95):.1f}", f"p99 {percentile(found, 99):.1f}", f"n {len(found)}",
    )


class Reader:
    """Acknowledges what a dashboard sends, as a page would, and keeps nothing."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def drain(self) -> None:
        self.wire.take_all()
        self.wire.hear({"kind": "ack", "seq": self.wire.widget._link.seq})


def throughput() -> None:
    with llmserve.serve(
        engine="simulator", prefill_ms=1, decode_ms=2, max_num_seqs=STREAMS
    ) as session:
        done = [False]

        def block(with_dashboard: bool) -> float:
            dashboards = Dashboards(session) if with_dashboard else None
            reader = None
            if dashboards is not None:
                reader = Reader(Wire(dashboards.open().charts))
                reader.wire.hear({"kind": "hello"})
            before, began = session.stats().generated_tokens_total, time.monotonic()
            while time.monotonic() < began + BLOCK_S:
                time.sleep(min(0.5, PATIENCE_S / 4))
                if reader is not None:
                    reader.drain()
            rate = (session.stats().generated_tokens_total - before) / (time.monotonic() - began)
            if dashboards is not None:
                dashboards.close()
            return rate

        async def load() -> None:
            from llmserve.bench.driver import Bench, ServiceTarget

            workload = Workload(
                concurrency=STREAMS, duration_s=10_000, prompt_tokens=64, max_tokens=64
            )
            bench = Bench(ServiceTarget(session.service, session.bus), workload)
            try:
                await bench.run()
            finally:
                done[0] = True

        running = session.runtime.submit(load())
        block(False)  # warm
        pairs = [(block(False), block(True)) for _ in range(BLOCKS)]
        running.cancel()
        ratios = [shown / alone for alone, shown in pairs]
        mean = statistics.fmean(ratios)
        error = statistics.stdev(ratios) / len(ratios) ** 0.5
        line(
            "tokens/s without, with", f"{statistics.fmean(a for a, _ in pairs):,.0f}",
            f"{statistics.fmean(b for _, b in pairs):,.0f}",
        )
        line("ratio", f"mean {mean:.3f}", f"lower bound (95 %) {mean - 1.833 * error:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("updates", "frames", "throughput"))
    chosen = parser.parse_args().only
    for part in (updates, frames, throughput):
        if chosen in (None, part.__name__):
            part()
