"""What only a GPU can show: that recorded steps are right, what they win, and what closing frees.

Run with `-s`, `test_speed_beside_generate_and_the_cards_memory` prints its table.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import llmserve
from benchmarks.torch_models import make_model, read_bytes
from llmserve.core.knobs import Knobs
from llmserve.engines.batching.step_planner import StepPlanner
from llmserve.engines.torch.model import cuda
from llmserve.engines.torch.model.cuda_graphs import Graphs
from llmserve.engines.torch.model.select_forward import load
from llmserve.engines.torch.options import parse
from llmserve.engines.torch.step_loop import StepLoop
from llmserve.engines.torch.text.detokenize import Detokenizer
from llmserve.engines.torch.text.tokenizer import open_tokenizer
from llmserve.entrypoints.session.shutdown_report import device_used
from support.tiny_models import Driven, generate, reference

DEVICE = "cuda"
NEW = 64
PROMPTS = [[3 + (7 * i + j * j) % 300 for j in range(60)] for i in range(32)]


def driven(folder: Path, *, graphs: bool, dtype: str = "float32", forward: str = "auto") -> Driven:
    model = load(parse({"model": folder, "dtype": dtype, "device": DEVICE, "forward": forward}))
    capture = cuda.CudaCapture() if graphs else None
    cuda.speed_up(model, kernel=cuda.varlen(), capture=capture, most_rows=64)
    planner = StepPlanner(
        kv_blocks=4096, block_size=16, max_model_len=model.max_model_len, prefix_caching=False
    )
    detokenizer = Detokenizer(open_tokenizer(folder).backend)
    return Driven(StepLoop(model, detokenizer, planner, Knobs(max_num_seqs=32), seed=1))


def say(one: Driven, rows: int, turn: int = 0) -> float:
    """Seconds that the steps after the prompts took."""
    for i, prompt in enumerate(PROMPTS[:rows]):
        one.submit(f"{turn}.{i}", prompt, max_tokens=NEW, temperature=0, ignore_eos=True)
    one.step()
    start = time.perf_counter()
    one.finish()
    return time.perf_counter() - start


@pytest.mark.gpu
@pytest.mark.parametrize("forward", ["compact", "general"])
def test_recorded_steps_say_what_generate_says(llama: Path, forward: str) -> None:
    one = driven(llama, graphs=True, forward=forward)
    say(one, 11)
    graphs = one.runner._model.compute
    assert isinstance(graphs, Graphs)
    assert graphs.held, "no graph was recorded"
    network = reference(llama).to(DEVICE)
    network.generation_config.eos_token_id = None
    for i, prompt in enumerate(PROMPTS[:11]):
        assert one.tokens(f"0.{i}") == generate(network, prompt, NEW)


@pytest.mark.gpu
def test_speed_beside_generate_and_the_cards_memory(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "235M")
    ways = {
        "recorded": driven(folder, graphs=True, dtype="bfloat16"),
        "step by step": driven(folder, graphs=False, dtype="bfloat16"),
    }
    network = reference(folder).to(DEVICE, torch.bfloat16)
    roof = memory_speed() / read_bytes("235M")
    print(f"\nthe roof, if a step only read the weights: {roof:,.0f} steps/s")  # noqa: T201  # asked for
    for rows in (1, 8, 32):
        told = {}
        for turn, (name, one) in enumerate(ways.items()):
            seconds = [say(one, rows, 100 * rows + 10 * turn + again) for again in range(3)]
            told[name] = rows * (NEW - 1) / min(seconds)
        told["generate"] = rows * NEW / min(generates(network, rows) for _ in range(3))
        shown = ", ".join(f"{name} {speed:,.0f}" for name, speed in told.items())
        share = told["recorded"] / (rows * roof)
        print(f"{rows} rows, tokens/s: {shown}; {share:.0%} of the roof")  # noqa: T201  # asked for
    assert ", ".join(sorted(told)) == "generate, recorded, step by step"


def generates(network: Any, rows: int) -> float:
    ids = torch.tensor(PROMPTS[:rows], device=DEVICE)
    start = time.perf_counter()
    network.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW,
        min_new_tokens=NEW, pad_token_id=0,
    )[0, -1].item()
    return time.perf_counter() - start


def memory_speed() -> float:
    """Bytes a second that a sum over a gigabyte reads."""
    data = torch.ones(1 << 29, dtype=torch.bfloat16, device=DEVICE)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        data.sum().item()
        seconds.append(time.perf_counter() - start)
    return data.nbytes / min(seconds)


@pytest.mark.gpu
def test_closing_gives_the_cards_memory_back(llama: Path) -> None:
    before = device_used()
    assert before is not None
    with llmserve.serve(str(llama), engine="torch", kv_cache_memory_bytes=1 << 28) as session:
        assert session.generate("hello", max_tokens=40, temperature=0.0)
        assert session.service.engine.info.device.startswith("cuda")
        during = device_used()
        assert during is not None
        assert during > before
    after = device_used()
    assert after is not None
    assert after < before + (64 << 20)
