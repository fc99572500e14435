"""The front at the pace of a GPU: the kernel's HTTP, driven from another process."""

from __future__ import annotations

import os
import statistics
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import llmserve
from benchmarks.gpu_torch import PROMPTS, decode_s, driven
from benchmarks.http_client import Client, Side
from benchmarks.torch_models import make_model

STEP_MS = 3.0
"""A decode step of a model of some billion parameters on a large card."""


def over_simulator(streams: int, new: int) -> str:
    """Tokens a second over HTTP from an engine that computes nothing, against its pace."""
    options: dict[str, Any] = {
        "prefill_ms": STEP_MS, "decode_ms": STEP_MS, "max_num_seqs_ceiling": streams,
    }  # fmt: skip
    with llmserve.serve(engine="simulator", max_num_seqs=streams, **options) as session:
        return drive(session, streams, new, streams / STEP_MS * 1e3)


def over_torch(model: str, streams: int, new: int, **how: str) -> str:
    """The same over the torch engine, against its step loop alone: no HTTP, no other process."""
    with tempfile.TemporaryDirectory() as name:
        folder = make_model(Path(name), model)
        alone = driven(folder, graphs=True, **how)
        decode_s(alone, streams, new, "warm")
        pace = streams * (new - 1) / decode_s(alone, streams, new, "measured")
        del alone
        options: dict[str, Any] = {**how, "max_num_seqs_ceiling": streams}
        with llmserve.serve(str(folder), "torch", max_num_seqs=streams, **options) as session:
            return drive(session, streams, new, pace)


def drive(session: Any, streams: int, new: int, pace: float) -> str:
    """Twice as many requests as streams, after as many to warm up."""
    side = Side(session.url, session.api_key, session.info.model_id, os.getpid())
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(2 * streams)]
    with closing(Client()) as client:
        client.drive(side, prompts[:streams], streams, new)
        found = client.drive(side, prompts, streams, new)
    assert found["tokens"] == len(prompts) * new, f"{found['tokens']} tokens came"
    speed = found["tokens"] / found["seconds"]
    return (
        f"{streams} streams: {speed:,.0f} tokens/s over HTTP, {speed / pace:.0%} of the engine's "
        f"{pace:,.0f}; TTFT p50 {statistics.median(found['ttft_ms']):.1f} ms; "
        f"{found['cpu_us']:.0f} µs of the kernel's CPU per token"
    )
