"""Our endpoint with vLLM in this process against vLLM's own server in a process of its own.

    cd tests && ../.venv-vllm/bin/python -m benchmarks.vllm_server [--concurrency 32] [--blocks 20]

Both are started with the same model and options and stay up; one client, in a third process, drives
them turn by turn: 200 tokens in, 200 out, streamed. A round is ours, theirs, theirs, ours (the next
one the other way round), so that drifts of the machine cancel out; a block is three rounds. Each
block gives a ratio of throughputs (all its tokens over all its seconds) and a difference of TTFT
medians. The intervals are Student's t over the blocks, 95 %.
Blocks go on until the interval's half-width is 3 % (and, where one client is alone, 0.5 ms), looked
at from the fifth on, or to the last block, or until 25 minutes are up.
Looking so often makes 92.5 to 95 % of it (simulated, with independent blocks).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llmserve
from benchmarks.http_client import Client, Side
from benchmarks.servers import KEY, free_port, running
from llmserve.bench.results.intervals import Interval, interval
from llmserve.engines.registry import has_gpu
from llmserve.models import bundled_path

PROMPT, REPLY = 200, 200
HALF, HALF_MS, FEWEST = 0.03, 0.5, 5
ROUNDS, MINUTES = 3, 25.0
SEQS, BATCHED = 64, 2048
REST_S = 1.3
"""An engine's worker spins for a second after its last step, on cores that the next turn needs."""


def gpu_share() -> dict[str, Any]:
    """Both servers are up at once, and vLLM alone takes nine tenths of a card."""
    return {"gpu_memory_utilization": 0.4} if has_gpu() else {}


@contextlib.contextmanager
def vllm_server(model: str, name: str, dtype: str) -> Iterator[Side]:
    """`vllm serve` with its own key check, its log in a file."""
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("vllm")), "serve", model, "--served-model-name", name,
        "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY, "--dtype", dtype,
        "--max-model-len", "512", "--max-num-seqs", str(SEQS), "--enforce-eager",
        "--max-num-batched-tokens", str(BATCHED), "--disable-uvicorn-access-log",
        "--enable-prompt-tokens-details",
    ]  # fmt: skip
    for option, share in gpu_share().items():
        command += [f"--{option.replace('_', '-')}", str(share)]
    with running(command, f"http://127.0.0.1:{port}/health") as process:
        yield Side(f"http://127.0.0.1:{port}/v1", KEY, name, process.pid)


def compare(
    client: Client, ours: Side, theirs: Side, concurrency: int, blocks: int, vocabulary: int
) -> None:
    """Alternate, print each block, and the intervals at the end."""
    dice, ratios, added = random.Random(1), list[float](), list[float]()
    alone = concurrency == 1
    requests = 4 if alone else 2 * concurrency
    end = time.monotonic() + 60 * MINUTES
    ttfts: dict[str, list[float]] = {"ours": [], "theirs": []}
    cpu: dict[str, list[float]] = {"ours": [], "theirs": []}

    def draw() -> list[list[int]]:
        return [[dice.randrange(10, vocabulary) for _ in range(PROMPT)] for _ in range(requests)]

    def turn(side: Side) -> dict[str, Any]:
        found = client.drive(side, draw(), concurrency, REPLY)
        time.sleep(REST_S)
        return found

    for side in (ours, theirs):
        turn(side)
    print(f"\nconcurrency {concurrency}: {requests} requests a turn, {4 * ROUNDS} turns a block\n"
          "block   ours tok/s   vllm serve   ratio   TTFT p50 ours   vllm serve (ms)")  # fmt: skip
    for block in range(blocks):
        seen: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
        for number in range(ROUNDS):
            turns = [("ours", ours), ("theirs", theirs)][:: 1 if (block + number) % 2 else -1]
            for name, side in (*turns, *reversed(turns)):
                # prompts of their own: what is computed, not what is kept, is looked at
                seen[name].append(turn(side))
        speed = {name: sum(one["tokens"] for one in told) / sum(one["seconds"] for one in told)
                 for name, told in seen.items()}  # fmt: skip
        found = {name: [ms for one in told for ms in one["ttft_ms"]] for name, told in seen.items()}
        middle = {name: statistics.median(ms) for name, ms in found.items()}
        for name, told in seen.items():
            ttfts[name] += found[name]
            cpu[name] += [one["cpu_us"] for one in told]
        ratios.append(speed["ours"] / speed["theirs"])
        added.append(middle["ours"] - middle["theirs"])
        print(f"{block + 1:5} {speed['ours']:12.0f} {speed['theirs']:12.0f} {ratios[-1]:7.3f} "
              f"{middle['ours']:15.2f} {middle['theirs']:12.2f}", flush=True)  # fmt: skip
        if block + 1 >= FEWEST and settled(ratios, added if alone else []):
            break
        if time.monotonic() > end:
            print("the time is up")
            break
    print(f"throughput, ours / vllm serve: {words(interval(ratios), '.3f')}, "
          f"median {statistics.median(ratios):.3f}")  # fmt: skip
    print(f"added TTFT p50: {words(interval(added), '.2f')} ms; of all requests "
          f"{statistics.median(ttfts['ours']):.2f} against "
          f"{statistics.median(ttfts['theirs']):.2f} ms")  # fmt: skip
    print(f"CPU of the answering process per token: {statistics.median(cpu['ours']):.0f} against "
          f"{statistics.median(cpu['theirs']):.0f} µs; load {os.getloadavg()[0]:.1f}",
          flush=True)  # fmt: skip


def settled(ratios: list[float], added: list[float]) -> bool:
    spread, late = interval(ratios), interval(added)
    return (
        spread is not None and spread.half is not None and spread.half <= HALF
        and (late is None or late.half is None or late.half <= HALF_MS)
    )  # fmt: skip


def words(found: Interval | None, form: str) -> str:
    if found is None or found.half is None:
        return "too few blocks"
    return f"{found.value:{form}} ± {found.half:{form}} (95 %, {found.n} blocks)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(bundled_path()))
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[32, 1])
    parser.add_argument("--blocks", type=int, default=20)
    asked = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    name = "bench"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the servers would stay
    with contextlib.ExitStack() as stack:
        theirs = stack.enter_context(vllm_server(asked.model, name, asked.dtype))
        session = stack.enter_context(llmserve.serve(
            asked.model, "vllm", served_model_name=name, dtype=asked.dtype, max_model_len=512,
            enforce_eager=True, max_num_seqs=SEQS, max_num_seqs_ceiling=SEQS,
            max_num_batched_tokens=BATCHED, max_num_batched_tokens_ceiling=BATCHED,
            **gpu_share(),
        ))  # fmt: skip
        ours = Side(session.url, session.api_key, name, os.getpid())
        client = Client()
        stack.callback(client.close)
        print(f"{session.info.details}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        for concurrency in asked.concurrency:
            vocabulary = session.info.vocab_size or 1000
            compare(client, ours, theirs, concurrency, asked.blocks, vocabulary)


if __name__ == "__main__":
    main()
