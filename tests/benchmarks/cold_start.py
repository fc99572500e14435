"""Cold starts, from a fresh process to the first reply, each beside what it cannot do without.

    PYTHONPATH=tests python -m benchmarks.cold_start [--models bundled,4M,235M] [--blocks 7]
        [--first 1] [--vllm .venv-vllm/bin/python]

The torch engine's second start of a model, whose proof is kept, against a process that imports
torch and reads the same weights. With --vllm, an environment's Python: vLLM in the kernel against
`vllm serve`. In every block each runs once, in an order that turns, each in a process of its own,
from its start to its answer; ratios are paired block by block, so that a busy machine hits all
alike. All files are in the page cache, for one start of each comes before.
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
from collections.abc import Sequence
from pathlib import Path

from benchmarks import vllm_start
from benchmarks.torch_models import make_model
from benchmarks.torch_table import interval
from llmserve.models import bundled_path

REPLY = """
import sys
import llmserve
session = llmserve.serve(sys.argv[1])
session.generate("hi", max_tokens=1)
print(session.info.details["proof"], flush=True)
session.close()
"""
SETTLE = """
import sys
import time
import llmserve
session = llmserve.serve(sys.argv[1])
while session.info.details["proof"].startswith("being made"):
    time.sleep(0.1)
print(session.info.details["proof"], flush=True)
session.close()
"""
READ = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
files = Path(sys.argv[1]).glob("*.safetensors")
held = [one.clone() for file in files for one in load_file(file).values()]
print(len(held), flush=True)
"""
IDEAL, SECOND, FIRST = "import torch, read the weights", "second start", "first start"
STARTS = {IDEAL: READ, SECOND: REPLY, FIRST: REPLY}

Took = dict[str, list[float]]


def fresh(code: str, cache: Path, model: Path) -> tuple[float, str]:
    """Seconds until a fresh process prints its line, and the line."""
    source = str(Path(__file__).parents[2] / "src")
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(cache)}
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(model)],
        env=environment, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        took = time.perf_counter() - begun
    if process.returncode or not line:
        raise SystemExit(f"a start failed, with exit status {process.returncode}")
    return took, line


def block(names: Sequence[str], kept: Path, model: Path) -> dict[str, float]:
    """Each start once, one after the other."""
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as empty:
            cache = Path(empty) if name == FIRST else kept
            found[name], said = fresh(STARTS[name], cache, model)
        if name == SECOND and not said.startswith("kept from an earlier start"):
            raise SystemExit(f"the proof was not kept: {said}")
    return found


def measure(model: Path, blocks: int, first: int) -> Took:
    found: Took = defaultdict(list)
    with tempfile.TemporaryDirectory() as kept:
        print("proven once:", fresh(SETTLE, Path(kept), model)[1], flush=True)
        block([IDEAL, SECOND], Path(kept), model)
        for number in range(blocks):
            names = [*STARTS] if number < first else [IDEAL, SECOND]
            turn = number % len(names)
            for name, took in block(names[turn:] + names[:turn], Path(kept), model).items():
                found[name].append(took)
    return found


def print_table(title: str, found: Took, against: str) -> None:
    """Each row's ratio is to `against` of the same block."""
    print(f"\n{title}: load average {os.getloadavg()[0]:.1f}; {os.cpu_count()} cores\n")
    print("| from a fresh process | s (median) | least | ratio (95 %) |")
    print("|---|---|---|---|")
    for name, took in found.items():
        line = f"| {name} | {statistics.median(took):.2f} | {min(took):.2f} |"
        if name == against:
            print(line, "1 |", flush=True)
            continue
        pairs = zip(took, found[against], strict=False)
        ratio, low, high = interval([one / other for one, other in pairs])
        print(line, f"{ratio:.2f} ({low:.2f} to {high:.2f}) |", flush=True)


def folder_of(name: str, within: Path) -> Path:
    return bundled_path() if name == "bundled" else make_model(within / name, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="bundled,4M,235M")
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--first", type=int, default=1, help="blocks that hold a first start too")
    parser.add_argument("--vllm", help="the Python of an environment with vLLM")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        for name in filter(None, asked.models.split(",")):
            model = folder_of(name, Path(made))
            print_table(f"torch, {name}", measure(model, asked.blocks, asked.first), IDEAL)
    if asked.vllm:
        found = vllm_start.measure(asked.vllm, asked.blocks)
        print_table("vLLM, the bundled model", found, vllm_start.THEIRS)


if __name__ == "__main__":
    main()
