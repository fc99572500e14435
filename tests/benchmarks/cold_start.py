"""The bundled model's cold start, from a fresh process to its first reply, beside `import torch`.

    PYTHONPATH=tests python -m benchmarks.cold_start [--blocks 7] [--first 1]

In every block each runs once, in an order that turns, each in a process of its own, from its start
to the line that it prints; ratios are paired block by block, so that a busy machine hits all alike.
A first start, which has no proof yet and imports transformers, has an empty cache of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.torch_table import interval

REPLY = """
import llmserve
session = llmserve.serve()
session.generate("hi", max_tokens=1)
print(session.info.details["proof"], flush=True)
session.close()
"""
SETTLE = """
import time
import llmserve
session = llmserve.serve()
while session.info.details["proof"].startswith("being made"):
    time.sleep(0.1)
print(session.info.details["proof"], flush=True)
session.close()
"""
TORCH = "import torch; print(torch.__version__, flush=True)"
STARTS = {"import torch": TORCH, "cold start": REPLY, "first start": REPLY}


def fresh(code: str, cache: Path) -> tuple[float, str]:
    """Seconds until a fresh process prints its line, and the line."""
    source = str(Path(__file__).parents[2] / "src")
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(cache)}
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        took = time.perf_counter() - begun
    if process.returncode or not line:
        raise SystemExit(f"a start failed, with exit status {process.returncode}")
    return took, line


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as kept:
        print("proven once:", fresh(SETTLE, Path(kept))[1], flush=True)
        for block in range(options.blocks):
            names = [*STARTS] if block < options.first else ["import torch", "cold start"]
            turn = block % len(names)
            for name in names[turn:] + names[:turn]:
                with tempfile.TemporaryDirectory() as empty:
                    cache = Path(empty if name == "first start" else kept)
                    took, said = fresh(STARTS[name], cache)
                if name == "cold start" and not said.startswith("kept from an earlier start"):
                    raise SystemExit(f"the proof was not kept: {said}")
                found[name].append(took)
    return found


def print_table(found: dict[str, list[float]]) -> None:
    print(f"\nload average {os.getloadavg()[0]:.1f}; {os.cpu_count()} cores\n")
    print("| from a fresh process | s (median) | least | times `import torch` (95 %) |")
    print("|---|---|---|---|")
    for name, took in found.items():
        line = f"| {name} | {statistics.median(took):.2f} | {min(took):.2f} |"
        if name == "import torch":
            print(line, "1 |")
            continue
        pairs = zip(took, found["import torch"], strict=False)
        ratio, low, high = interval([one / other for one, other in pairs])
        print(line, f"{ratio:.2f} ({low:.2f} to {high:.2f}) |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--first", type=int, default=1, help="blocks that hold a first start too")
    print_table(measure(parser.parse_args()))
