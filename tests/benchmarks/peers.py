"""This project's engines beside their peers: one model, one workload, one driver, in turns.

    cd tests && python -m benchmarks.peers [--parts torch generate vllm] [--pairs 8] [--write]

torch:    our torch engine's server against `transformers serve` with continuous batching
generate: the same server against `model.generate` over a static batch, in a process of its own
vllm:     vLLM here against `vllm serve`

Each part starts both servers, warms them up, and compares them in pairs of runs on identical
arrivals, A B B A, as `llmserve compare` does. A part's rows are kept in a file at once (--keep), so
that parts may be run one by one; --write puts all that is kept into docs/benchmarks.md. Rows of
another model or load are not mixed in: the file begins anew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.batches import Batches
from benchmarks.page import write_section
from benchmarks.servers import KEY, free_port, llmserve, machine, running
from llmserve.bench.load.workload import Workload
from llmserve.bench.run.cell import run_job
from llmserve.bench.run.client import Client
from llmserve.bench.run.http_target import HttpTarget
from llmserve.core.clock import MonotonicClock
from llmserve.engines.torch.text.tokenizer import open_tokenizer
from llmserve.lab.compare import Comparing
from llmserve.lab.comparison import Comparison
from llmserve.lab.settings import Side
from llmserve.models import bundled_path
from llmserve.serving.runtime import Runtime

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
VLLM = ROOT / ".venv-vllm" / "bin" / "python"
KEEP = ROOT / "tests" / "artifacts" / "peers.json"
DTYPE = "float32"
SEQS, BATCHED = 32, 2048
PASSIVE = {"OMP_WAIT_POLICY": "passive"}
REST_S = 1.3
"""A worker of vLLM spins for a second after its last step, on cores that the next turn needs."""
FAR = 100
"""An interval of few pairs may reach anywhere; beyond this nobody need know where."""
SHOWN = ("generated_tokens_per_s", "ttft_mean", "itl_mean", "e2e_mean")
WORDS = {
    "generated_tokens_per_s": "generated tokens/s", "ttft_mean": "mean TTFT (ms)",
    "itl_mean": "mean ITL (ms)", "e2e_mean": "mean E2E (ms)",
}  # fmt: skip


class Row(msgspec.Struct, frozen=True):
    part: str
    workload: str
    figure: str
    ours: float
    theirs: float
    ratio: float | None
    low: float | None
    high: float | None
    shown: bool
    pairs: int
    load: float


class Kept(msgspec.Struct):
    """What was measured so far, of one model and one load."""

    asked: dict[str, Any]
    parts: dict[str, list[Row]] = {}


async def nothing() -> None:
    """A server is entered by asking it."""


async def rest() -> None:
    await asyncio.sleep(REST_S)


def side(
    label: str, url: str, model: str, tokens_of: str | None,
    extra: dict[str, Any] | None = None, enter: Callable[[], Awaitable[None]] = nothing,
) -> Side:  # fmt: skip
    """tokens_of: a model, for prompts in its tokens; None for as many words of text."""
    tokenizer = None if tokens_of is None else open_tokenizer(Path(tokens_of))
    target = HttpTarget(Client(url, KEY), model, MonotonicClock(), tokenizer, extra=extra)
    return Side(label, target, enter)


@contextmanager
def our_server(
    python: str, engine: str, model: str, *words: str, env: dict[str, str],
    text: bool = False, enter: Callable[[], Awaitable[None]] = nothing,
) -> Iterator[Side]:  # fmt: skip
    port = free_port()
    command = llmserve(
        python, model, port, engine, f"--option=dtype={DTYPE}", "--max-num-seqs", str(SEQS), *words
    )
    env = env | {"PYTHONPATH": str(ROOT / "src")}
    with running(command, f"http://127.0.0.1:{port}/health", env):
        name = served_model(f"http://127.0.0.1:{port}/v1")
        tokens_of = None if text else model
        url = f"http://127.0.0.1:{port}/v1"
        yield side(f"llmserve, {engine}", url, name, tokens_of, enter=enter)


def our_torch(model: str, *, text: bool = False) -> AbstractContextManager[Side]:
    threads = f"--option=threads={len(os.sched_getaffinity(0))}"
    return our_server(sys.executable, "torch", model, threads, env=PASSIVE, text=text)


def served_model(url: str) -> str:
    async def ask() -> str:
        client = Client(url, KEY)
        try:
            return str((await client.ask("GET", f"{url}/models"))["data"][0]["id"])
        finally:
            await client.aclose()

    return asyncio.run(ask())


@contextmanager
def torch_part(model: str) -> Iterator[tuple[Side, Side]]:
    port = free_port()
    start = "from transformers.cli.transformers import main; main()"
    command = [
        str(PEERS), "-c", start, "serve", model, "--continuous-batching", "--device", "cpu",
        "--dtype", DTYPE, "--port", str(port), "--host", "127.0.0.1",
    ]  # fmt: skip
    greedy = {
        "temperature": None,  # 0 would end its batching loop
        "generation_config": json.dumps({"do_sample": False, "eos_token_id": -1}),
    }
    with ExitStack() as stack:
        ours = stack.enter_context(our_torch(model, text=True))
        stack.enter_context(running(command, f"http://127.0.0.1:{port}/health", PASSIVE))
        yield ours, side("transformers serve", f"http://127.0.0.1:{port}/v1", model, None, greedy)


@contextmanager
def generate_part(model: str) -> Iterator[tuple[Side, Side]]:
    with ExitStack() as stack:
        ours = stack.enter_context(our_torch(model))
        batches = stack.enter_context(Batches.open(model, DTYPE))
        yield ours, Side("model.generate, static batch", batches, nothing)


@contextmanager
def vllm_part(model: str) -> Iterator[tuple[Side, Side]]:
    """Both with the same limits, or their engines would not be the same."""
    port, length = free_port(), context_of(model)
    command = [
        str(VLLM.with_name("vllm")), "serve", model, "--served-model-name", "peer", "--host",
        "127.0.0.1", "--port", str(port), "--api-key", KEY, "--dtype", DTYPE, "--enforce-eager",
        "--max-model-len", str(length), "--max-num-seqs", str(SEQS),
        "--max-num-batched-tokens", str(BATCHED), "--disable-uvicorn-access-log",
        "--enable-prompt-tokens-details",
    ]  # fmt: skip
    words = [
        f"--option=max_model_len={length}", "--option=enforce_eager=true",
        f"--option=max_num_seqs_ceiling={SEQS}", "--max-num-batched-tokens", str(BATCHED),
        f"--option=max_num_batched_tokens_ceiling={BATCHED}",
    ]  # fmt: skip
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with ExitStack() as stack:
        stack.enter_context(running(command, f"http://127.0.0.1:{port}/health", env))
        ours = stack.enter_context(
            our_server(str(VLLM), "vllm", model, *words, env=env, enter=rest)
        )
        url = f"http://127.0.0.1:{port}/v1"
        yield ours, side("vllm serve", url, "peer", model, enter=rest)


def context_of(model: str) -> int:
    config = json.loads((Path(model) / "config.json").read_text())
    return min(2048, int(config["max_position_embeddings"]))


PARTS = {"torch": torch_part, "generate": generate_part, "vllm": vllm_part}
NEEDS = {"torch": PEERS, "vllm": VLLM}


def measure(name: str, options: argparse.Namespace) -> list[Row]:
    rows = []
    with PARTS[name](options.model) as (ours, theirs):
        for places in options.concurrency:
            load = Workload(
                concurrency=places, requests=2 * places, prompt_tokens=options.prompt,
                max_tokens=options.new,
            )
            found = compared(theirs, ours, load, options.pairs)
            print(f"\n{name}, {places} at once\n{found}", flush=True)
            rows += table_rows(name, places, found)
    return rows


def compared(theirs: Side, ours: Side, load: Workload, pairs: int) -> Comparison:
    """A is theirs, so that what is told of B against A is told of ours against theirs."""
    runtime = Runtime()
    try:
        job = Comparing(theirs, ours, load, pairs=pairs, warmup=True)
        return run_job(runtime, job, progress=False)
    finally:
        for one in (theirs, ours):
            if isinstance(one.target, HttpTarget):
                runtime.call(one.target.aclose())
        runtime.close()


def table_rows(name: str, places: int, found: Comparison) -> list[Row]:
    failed = sum(sum(r.errors.values()) for r in (*found.runs_a, *found.runs_b))
    if failed or found.spoiled:
        raise SystemExit(f"{name}: nothing to tell: {found.warnings()}")
    rows = []
    for figure in SHOWN:
        difference = found.difference(figure)
        if difference is None:
            continue
        scale = 1.0 if figure == "generated_tokens_per_s" else 1e3
        ratio, low, high = (
            None if v is None else 1 + v
            for v in (difference.change, difference.low, difference.high)
        )
        rows.append(Row(
            part=f"{found.b} / {found.a}", workload=f"{places} at once", figure=figure,
            ours=difference.b * scale, theirs=difference.a * scale, ratio=ratio, low=low,
            high=high, shown=difference.shown, pairs=found.pairs, load=os.getloadavg()[0],
        ))  # fmt: skip
    return rows


def section(rows: list[Row], options: argparse.Namespace) -> list[str]:
    loads = sorted(row.load for row in rows)
    head = ("ours / theirs", "load", "figure", "ours", "theirs", "ratio (interval)", "")
    lines = [
        f"{machine()}. Model: {Path(options.model).name}, {DTYPE}, greedy, no end token, "
        f"{options.prompt} tokens in (words of text for transformers serve, which takes no "
        f"tokens), {options.new} out, {min(row.pairs for row in rows)} pairs of runs in turns; "
        "the intervals of one comparison hold together at 95 %. Load average while it ran "
        f"{loads[0]:.1f} to {loads[-1]:.1f}.",
        "", f"| {' | '.join(head)} |", "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]  # fmt: skip
    for row in rows:
        span = "–"
        if row.ratio is not None and row.low is not None and row.high is not None:
            high = f"{row.high:.2f}" if row.high < FAR else f"over {FAR}"
            span = f"{row.ratio:.2f} ({row.low:.2f} to {high})"
        told = "" if row.shown else "no difference shown"
        figures = (f"{row.ours:,.1f}", f"{row.theirs:,.1f}", span)
        cells = (row.part, row.workload, WORDS[row.figure], *figures, told)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def read_kept(path: Path, asked: dict[str, Any]) -> Kept:
    if path.exists():
        kept = msgspec.json.decode(path.read_bytes(), type=Kept)
        if kept.asked == asked:
            return kept
    return Kept(asked)


def main(options: argparse.Namespace) -> None:
    asked = {name: getattr(options, name) for name in ("model", "concurrency", "prompt", "new")}
    kept = read_kept(options.keep, asked)
    for name in options.parts:
        if (python := NEEDS.get(name)) is not None and not python.exists():
            print(f"{name} is left out: there is no {python.parent.parent.name}")
            continue
        kept.parts[name] = measure(name, options)
        options.keep.parent.mkdir(parents=True, exist_ok=True)
        options.keep.write_bytes(msgspec.json.encode(kept))
    rows = [row for name in PARTS for row in kept.parts.get(name, [])]
    if not rows:
        raise SystemExit("nothing was measured")
    lines = section(rows, options)
    print("\n".join(lines))
    if options.write:
        write_section("peers", lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", choices=[*PARTS], default=[*PARTS])
    parser.add_argument("--model", default=str(bundled_path()))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8])
    parser.add_argument("--prompt", type=int, default=200)
    parser.add_argument("--new", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=8, help="2 or more")
    parser.add_argument("--keep", type=Path, default=KEEP)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    main(parser.parse_args())
