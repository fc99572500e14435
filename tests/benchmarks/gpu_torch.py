"""The torch engine's step loop on a device: replies, speed, and the speed of the memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.torch_models import make_model, read_bytes
from llmserve.core.knobs import Knobs
from llmserve.engines.batching.step_planner import StepPlanner
from llmserve.engines.torch.model import cuda
from llmserve.engines.torch.model.cuda_graphs import Capture, Graphs, Replay
from llmserve.engines.torch.model.select_forward import load
from llmserve.engines.torch.options import parse
from llmserve.engines.torch.step_loop import StepLoop
from llmserve.engines.torch.text.detokenize import Detokenizer
from llmserve.engines.torch.text.tokenizer import open_tokenizer
from support.tiny_models import Driven, generate, reference

PROMPTS = [[3 + (7 * i + j * j) % 300 for j in range(60)] for i in range(32)]


def rerun(run: Replay) -> Replay:
    """What stands in for a recorded graph where there is no CUDA: the function itself."""
    return run


def driven(
    folder: Path, *, device: str, graphs: bool, dtype: str = "float32", forward: str = "auto"
) -> Driven:
    model = load(parse({"model": folder, "dtype": dtype, "device": device, "forward": forward}))
    on_gpu = device.startswith("cuda")
    capture: Capture | None = None
    if graphs:
        capture = cuda.CudaCapture() if on_gpu else rerun
    cuda.speed_up(model, kernel=cuda.varlen() if on_gpu else None, capture=capture, most_rows=64)
    planner = StepPlanner(
        kv_blocks=4096, block_size=16, max_model_len=model.max_model_len, prefix_caching=False
    )
    detokenizer = Detokenizer(open_tokenizer(folder).backend)
    return Driven(StepLoop(model, detokenizer, planner, Knobs(max_num_seqs=32), seed=1))


def graphs_of(one: Driven) -> int:
    """How many graphs it has recorded."""
    compute = one.runner._model.compute
    return compute.recorded if isinstance(compute, Graphs) else 0


def decode_s(one: Driven, rows: int, new: int, name: str = "0") -> float:
    """Seconds that the steps after the prompts took."""
    for i, prompt in enumerate(PROMPTS[:rows]):
        one.submit(f"{name}.{i}", prompt, max_tokens=new, temperature=0, ignore_eos=True)
    one.step()
    start = time.perf_counter()
    one.finish()
    return time.perf_counter() - start


def unequal(one: Driven, folder: Path, device: str, rows: int, new: int) -> list[int]:
    """Prompts whose reply is not what `generate` says of the same model on the same device."""
    decode_s(one, rows, new)
    network = reference(folder).to(device)
    network.generation_config.eos_token_id = None
    return [
        i
        for i, prompt in enumerate(PROMPTS[:rows])
        if one.tokens(f"0.{i}") != generate(network, prompt, new)
    ]


def generate_s(network: Any, rows: int, new: int) -> float:
    """Seconds of `generate` for as many prompts as one batch."""
    ids = torch.tensor(PROMPTS[:rows], device=network.device)
    start = time.perf_counter()
    network.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new,
        min_new_tokens=new, pad_token_id=0,
    )[0, -1].item()  # fmt: skip
    return time.perf_counter() - start


def memory_speed(device: str, elements: int = 1 << 29) -> float:
    """Bytes a second that a sum over so many bfloat16 numbers reads."""
    data = torch.ones(elements, dtype=torch.bfloat16, device=device)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        data.sum().item()
        seconds.append(time.perf_counter() - start)
    return data.nbytes / min(seconds)


class SpeedTable:
    """Decode speed of one model, with recorded steps, without, and of `generate`."""

    def __init__(
        self, folder: Path, model: str, device: str, *, new: int, read_speed: float,
        dtype: str = "bfloat16", forward: str = "auto",
    ) -> None:  # fmt: skip
        make_model(folder, model)
        self.steps_per_s = read_speed / read_bytes(model, getattr(torch, dtype).itemsize)
        """How many steps a second reading the weights alone would allow."""
        self._new, self._turn = new, 0
        self._ways = {
            name: driven(folder, device=device, graphs=graphs, dtype=dtype, forward=forward)
            for name, graphs in (("recorded", True), ("step by step", False))
        }
        self._network = reference(folder).to(device, getattr(torch, dtype))

    def row(self, rows: int, again: Sequence[int] = range(3)) -> dict[str, float]:
        """Tokens a second by way, the best of some turns."""
        found = {}
        for name, one in self._ways.items():
            seconds = []
            for _ in again:
                self._turn += 1
                seconds.append(decode_s(one, rows, self._new, f"turn{self._turn}"))
            found[name] = rows * (self._new - 1) / min(seconds)
        best = min(generate_s(self._network, rows, self._new) for _ in again)
        return found | {"generate": rows * self._new / best}
