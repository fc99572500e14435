"""What a dashboard costs. On a quiet machine:

    PYTHONPATH=src:tests python tests/benchmarks/dashboard_cost.py [--only updates]

Its parts are updates, frames, tape and throughput.

updates: kernel CPU and bytes of each kind of message, under a recorded load on virtual time.
frames: a real Chromium shows a recorded stream with the engine off, five updates a second; the
times between animation frames tell how fluid the page is.
tape: 10,000 steps of 256 requests in that Chromium, scrolled and zoomed at every frame.
throughput: a session with a dashboard whose headless reader drains it, against the same session
without, in interleaved blocks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any

import llmserve
from dashboard.browser import Screen, chromium, screen
from dashboard.parts import Desk, Wire
from dashboard.story import tell
from llmserve.bench.load.workload import Workload
from llmserve.core.events import StepRecorded
from llmserve.core.knobs import Knobs
from llmserve.core.types import StepRecord, StepRow
from llmserve.dashboard import Dashboards
from llmserve.dashboard.batch_tape import STEPS
from llmserve.dashboard.page_link import PATIENCE_S
from llmserve.dashboard.series import CAPACITY

MIXED = Workload(rate=40, duration_s=10_000, prompt_tokens=(20, 300), max_tokens=(8, 100))
BLOCKS, BLOCK_S, STREAMS = 16, 4.0, 32
SETTLE_S = 1.0
ONE_SIDED = 1.753
"""Student's t for a lower bound of 95 % over as many blocks."""


def size(message: tuple[dict[str, Any], list[bytes]]) -> int:
    content, buffers = message
    return len(json.dumps(content)) + sum(map(len, buffers))


def percentile(values: list[float], rank: float) -> float:
    return sorted(values)[min(len(values) - 1, int(rank / 100 * len(values)))]


def line(name: str, *figures: str) -> None:
    print(f"{name:<37}" + "   ".join(figures), flush=True)


WATCH_FRAMES = (
    "() => { const found = window.frames_ms = []; let last = performance.now();"
    " const tick = (now) => { found.push(now - last); last = now;"
    " if (window.frames_ms === found) requestAnimationFrame(tick); };"
    " requestAnimationFrame(tick); }"
)
FRAMES = "() => window.frames_ms.slice(5)"


class Timed:
    """CPU time of this thread in each call of a method, in ms; of a generator's whole run too."""

    def __init__(self, owner: object, name: str) -> None:
        self.ms: list[float] = []
        real = getattr(owner, name)

        def timed(*args: Any, **options: Any) -> Any:
            began = time.thread_time()
            made = real(*args, **options)
            made = list(made) if isinstance(made, Iterator) else made
            self.ms.append(1e3 * (time.thread_time() - began))
            return made

        setattr(owner, name, timed)


def updates(seconds: float = 120.0) -> None:
    """40 requests a second, about 90 steps a second; a page that listens all the while.

    A chart update is a sample of all figures and the message with its row; what goes with it
    apart (the tape, why it is slow) is timed apart.
    """
    desk = Desk.lay()
    desk.parts.board.update(["max_num_seqs"], Knobs(max_num_seqs=64))
    sizes: dict[str, list[int]] = {"delta": [], "why": [], "tape": []}
    panel_lists = 0
    outbox = desk.charts._outbox
    sample, rows = Timed(desk.recorder, "sample"), Timed(outbox, "_rows")
    apart = {name: Timed(outbox, f"_{name}") for name in ("why", "tape", "replies")}
    whole = Timed(desk.charts, "push")
    desk.wire.hear({"kind": "hello"})
    for timed in (sample, rows, whole, *apart.values()):
        timed.ms.clear()

    def push() -> None:
        nonlocal panel_lists
        desk.charts.push()
        for message in desk.wire.take_all():
            kind = message[0]["kind"]
            if "panels" in message[0]:
                panel_lists += 1  # a panel has come: told once, and left out of the sizes
            elif kind in sizes:
                sizes[kind].append(size(message))
        desk.wire.hear({"kind": "ack", "seq": desk.charts._link.seq})

    tell(desk, [MIXED], seconds, each=push)
    charts = [a + b for a, b in zip(sample.ms, rows.ms, strict=True)]
    everything = [a + b for a, b in zip(sample.ms, whole.ms, strict=True)]
    figures("kernel CPU per chart update (ms)", charts)
    for name, timed in apart.items():
        figures(f"kernel CPU per look at {name} (ms)", timed.ms)
    figures("kernel CPU, all of it (ms)", everything)
    for kind, found in sizes.items():
        line(
            f"bytes per {kind} message", f"p50 {statistics.median(found):,.0f}",
            f"max {max(found):,}", f"n {len(found)}",
        )
    line("deltas with a new list of panels", str(panel_lists))


def figures(name: str, ms: list[float]) -> None:
    line(
        name, f"p50 {statistics.median(ms):.2f}", f"mean {statistics.fmean(ms):.2f}",
        f"p95 {percentile(ms, 95):.2f}", f"n {len(ms)}",
    )


def frames(seconds: float = 20.0) -> None:
    """12 panels, 3,000 rows behind them, the tape in sight."""
    desk = Desk.lay()
    tell(desk, [MIXED], CAPACITY * 0.2 / 10)
    for _ in range(CAPACITY):  # the rest at rest: what is drawn is the same either way
        desk.parts.clock.advance(0.2)
        desk.recorder.sample()
    with chromium() as browser, screen(browser, desk, 1280, 1300) as shown:
        shown.start()
        shown.page.locator("[data-llmserve=window]").select_option("600")
        stream: list[list[tuple[dict[str, Any], list[bytes]]]] = []

        def keep() -> None:
            desk.charts.push()
            stream.append(desk.wire.take_all())
            desk.wire.hear({"kind": "ack", "seq": desk.charts._link.seq})

        tell(desk, [MIXED], seconds, each=keep)
        shown.page.evaluate(WATCH_FRAMES)
        began = time.monotonic()
        for i, messages in enumerate(stream):
            shown.page.wait_for_timeout(max(0.0, 1e3 * (began + 0.2 * i - time.monotonic())))
            for content, buffers in messages:
                shown.deliver(content, buffers)
        frames_line("time between frames (ms)", shown.page.evaluate(FRAMES))


def frames_line(name: str, found: list[float]) -> None:
    line(
        name, f"p50 {statistics.median(found):.1f}", f"p95 {percentile(found, 95):.1f}",
        f"p99 {percentile(found, 99):.1f}", f"n {len(found)}",
    )


def tape(frames: int = 300) -> None:
    """A drag to the left, the wheel out to all steps and in again, and rows scrolled."""
    desk = Desk.lay()
    for i in range(STEPS):
        rows = tuple(StepRow(f"r{i // 40 + k}", "decode", 1) for k in range(256))
        record = StepRecord(
            index=i, start_s=1000 + 0.01 * i, duration_s=0.01, rows=rows, running=256, waiting=0,
            kv_used_tokens=1, kv_capacity_tokens=2, max_num_seqs=256, max_num_batched_tokens=512,
        )
        desk.recorder.tape(StepRecorded(t=1000 + 0.01 * i, record=record))
    with chromium() as browser, screen(browser, desk, 1280, 1300) as shown:
        shown.start()
        canvas = shown.page.locator("[data-llmserve=tape-canvas]")
        canvas.scroll_into_view_if_needed()
        for name, deltas in (("zoom", "i % 80 < 40 ? 100 : -100, false"), ("rows", "30, true")):
            frames_line(f"tape, {name}: between frames (ms)", _wheel(shown, deltas, frames))
        canvas.focus()
        shown.page.evaluate(WATCH_FRAMES)
        for i in range(frames // 3):
            shown.page.keyboard.press("ArrowLeft" if i % 40 < 20 else "ArrowRight")
        frames_line("tape, steps: between frames (ms)", shown.page.evaluate(FRAMES))


def _wheel(shown: Screen[Desk], deltas: str, frames: int) -> list[float]:
    """One wheel event per frame, as a trackpad sends them; the times between frames."""
    found: list[float] = shown.page.evaluate(
        "(frames) => new Promise((resolve) => {"
        " const canvas = document.querySelector('[data-llmserve=tape-canvas]');"
        " const box = canvas.getBoundingClientRect(); const found = [];"
        " let last = performance.now(); let i = 0;"
        " const tick = (now) => { found.push(now - last); last = now;"
        f" const [deltaY, shiftKey] = [{deltas}];"
        " canvas.dispatchEvent(new WheelEvent('wheel', { deltaY, shiftKey, cancelable: true,"
        " clientX: box.left + box.width / 2, clientY: box.top + 90 }));"
        " if (++i < frames) requestAnimationFrame(tick); else resolve(found.slice(5)); };"
        " requestAnimationFrame(tick); })",
        frames,
    )
    return found


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

        def run(reader: Reader | None, seconds: float) -> None:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(min(0.5, PATIENCE_S / 4))
                if reader is not None:
                    reader.drain()

        def block(with_dashboard: bool) -> float:
            dashboards = Dashboards(session) if with_dashboard else None
            reader = None
            if dashboards is not None:
                reader = Reader(Wire(dashboards.open().charts))
                reader.wire.hear({"kind": "hello"})
            run(reader, SETTLE_S)  # opening it tells all that was before
            before, began = session.stats().generated_tokens_total, time.monotonic()
            run(reader, BLOCK_S)
            rate = (session.stats().generated_tokens_total - before) / (time.monotonic() - began)
            if dashboards is not None:
                dashboards.close()
            return rate

        async def load() -> None:
            from llmserve.bench.run.driver import Bench, ServiceTarget

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
        pairs = []
        for turn in range(BLOCKS):
            told = {shown: block(shown) for shown in ((False, True), (True, False))[turn % 2]}
            pairs.append((told[False], told[True]))
        running.cancel()
        ratios = [shown / alone for alone, shown in pairs]
        mean = statistics.fmean(ratios)
        error = statistics.stdev(ratios) / len(ratios) ** 0.5
        line(
            "tokens/s without, with", f"{statistics.fmean(a for a, _ in pairs):,.0f}",
            f"{statistics.fmean(b for _, b in pairs):,.0f}",
        )
        line("ratio", f"mean {mean:.3f}", f"lower bound (95 %) {mean - ONE_SIDED * error:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("updates", "frames", "tape", "throughput"))
    chosen = parser.parse_args().only
    for part in (updates, frames, tape, throughput):
        if chosen in (None, part.__name__):
            part()
