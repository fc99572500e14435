"""How fast a simulation is: requests per CPU-second, beside the same run over asyncio.

    make bench-simulator [ARGS="--blocks 12 --write"]

The same load goes through the service on a virtual clock ("asyncio") and through `simulate`, in
blocks that take turns; the ratio is of a block's two runs, with its 95 % interval over blocks. Then
an hour of 23,608 requests in one run, and the memory of 100,000 and of a million requests.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.page import write_section
from benchmarks.servers import machine
from llmserve.bench.load.workload import Workload
from llmserve.bench.results.intervals import interval
from llmserve.lab import simulate
from support.whole_path import through_service

PAGE = Path(__file__).parents[2] / "docs" / "simulation.md"
HOUR = Workload(rate=23_608 / 3600, requests=23_608, prompt_tokens=(64, 512), max_tokens=(8, 128))
PATIENT: dict[str, object] = {
    "queue_max": 100_000, "queue_timeout_s": 86_400, "request_timeout_s": 86_400,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    load: Workload
    knobs: dict[str, object] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    slow: int = 60
    """Requests of a block over asyncio; `simulate` takes six times as many."""


CASES = {
    "rate 12, 128 in, 8–128 out": Case(Workload(rate=12, max_tokens=(8, 128))),
    "overload: rate 60, the same sizes": Case(
        Workload(rate=60, max_tokens=(8, 128)), PATIENT, slow=90
    ),
    "256 running: rate 400, the same sizes": Case(
        Workload(rate=400, max_tokens=(8, 128)),
        PATIENT | {"max_num_seqs": 256},
        {"kv_capacity_tokens": 1_000_000},
        slow=200,
    ),
    "long prompts: rate 4, 1,024–4,096 in, 8–128 out": Case(
        Workload(rate=4, prompt_tokens=(1024, 4096), max_tokens=(8, 128)),
        {},
        {"kv_capacity_tokens": 1_000_000},
        slow=40,
    ),
    "long replies: rate 2, 128 in, 256–1,024 out": Case(
        Workload(rate=2, max_tokens=(256, 1024)), {}, {"kv_capacity_tokens": 1_000_000}, slow=20
    ),
}


def cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def compare(case: Case, blocks: int) -> str:
    """Cells of a row: both speeds, and their ratio with its interval."""
    slow, fast = [], []
    for block in range(blocks + 1):
        few = replace(case.load, requests=case.slow, seed=block)
        many = replace(case.load, requests=6 * case.slow, seed=block)
        pair = (
            lambda few=few: slow.append(
                few.requests
                / cpu_s(lambda: through_service(few, case.knobs, keep=False, **case.engine))
            ),
            lambda many=many: fast.append(
                many.requests
                / cpu_s(lambda: simulate(many, case.knobs, progress=False, **case.engine))
            ),
        )
        for run in pair if block % 2 else reversed(pair):
            run()
    del slow[0], fast[0]  # a warm-up
    ratio = interval([b / a for a, b in zip(slow, fast, strict=True)])
    assert ratio is not None
    half = "" if ratio.half is None else f" ±{ratio.half:.1f}"
    median_slow, median_fast = (sorted(one)[len(one) // 2] for one in (slow, fast))
    return f"{median_slow:,.0f} | {median_fast:,.0f} | {ratio.value:.1f}{half}"


def an_hour() -> str:
    wall, began = time.perf_counter(), time.process_time()
    result = simulate(HOUR, progress=False)
    cpu, wall = time.process_time() - began, time.perf_counter() - wall
    return (
        f"An hour of {result.report.sent:,} requests ({HOUR.kinds['']}) takes {cpu:.1f} s of CPU "
        f"({wall:.1f} s by the clock): {result.report.sent / cpu:,.0f} requests a CPU-second, "
        f"{result.makespan_s / cpu:,.0f} times real time."
    )


def memory(requests: int) -> dict[str, float]:
    """In a process of its own: MB resident before, at the most, and CPU seconds."""
    code = (
        "import json, re, time\n"
        "import numpy, pandas\n"
        "from llmserve.lab import Workload, simulate\n"
        "status = lambda: open('/proc/self/status').read()\n"
        "mb = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status())[1]) / 1024\n"
        "before, began = mb(), time.process_time()\n"
        f"result = simulate(Workload(rate=12, requests={requests}, max_tokens=(8, 128)))\n"
        "print(json.dumps({'before': before, 'most': mb(),\n"
        "    'cpu_s': time.process_time() - began, 'sent': result.report.sent}))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(run.stdout)
    return found


def page(args: argparse.Namespace) -> list[str]:
    lines = [
        f"Requests per CPU-second, {args.blocks} blocks in turns; ± holds 95 % over blocks. "
        f"{machine()}",
        "",
        "| load | asyncio | `simulate` | ratio |",
        "|---|---|---|---|",
    ]
    lines += [f"| {name} | {compare(case, args.blocks)} |" for name, case in CASES.items()]
    lines += ["", an_hour()]
    for requests in args.memory:
        found = memory(requests)
        lines.append(
            f"{requests:,} requests take {found['most'] - found['before']:,.0f} MB at the most, "
            f"beside the {found['before']:,.0f} MB of Python, numpy and pandas, and "
            f"{found['cpu_s']:,.0f} s of CPU."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--memory", type=int, nargs="*", default=[100_000])
    parser.add_argument("--write", action="store_true", help="into docs/simulation.md")
    args = parser.parse_args()
    lines = page(args)
    print("\n".join(lines))
    if args.write:
        write_section("simulator-speed", lines, PAGE)


if __name__ == "__main__":
    main()
