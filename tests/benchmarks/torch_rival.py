"""Another engine in a process of its own: a line of JSON in, the seconds it took out.

    PYTHON torch_rival.py generate|batching|vllm|roof MODEL THREADS DTYPE

Started by `torch_table.py`. Each line holds `prompts` (token ids) and `new`, or `roof`: read
memory once and tell bytes per second.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Block = Callable[[list[list[int]], int], float]


def generate(model: str, dtype: str) -> Block:
    """transformers' generate over a static batch."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def block(prompts: list[list[int]], new: int) -> float:
        ids = torch.tensor(prompts)
        start = time.perf_counter()
        with torch.inference_mode():
            out = network.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=new,
                max_new_tokens=new,
            )
        assert out.shape[1] == len(prompts[0]) + new
        return time.perf_counter() - start

    return block


def batching(model: str, dtype: str) -> Block:
    """transformers' continuous batching, by one manager for all blocks: a call of `generate_batch`
    sets up a new one."""
    import torch
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).eval()
    manager = network.init_continuous_batching(
        GenerationConfig(do_sample=False, eos_token_id=-1),
        ContinuousBatchingConfig(
            num_blocks=128, max_batch_tokens=2048, max_requests_per_batch=64,
            allow_block_sharing=False,
        ),
    )  # fmt: skip
    manager.start()

    def block(prompts: list[list[int]], new: int) -> float:
        start = time.perf_counter()
        manager.add_requests(prompts, max_new_tokens=new)
        for _ in prompts:
            told = manager.get_result(timeout=300)
            assert told is not None, "the manager gave no result"
            assert len(told.generated_tokens) == new, (told.error, len(told.generated_tokens))
        return time.perf_counter() - start

    return block


def vllm(model: str, dtype: str) -> Block:
    """vLLM's AsyncLLM."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    loop = asyncio.new_event_loop()

    async def start() -> Any:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(
            model=model, dtype=dtype, skip_tokenizer_init=True, enforce_eager=True,
            max_model_len=512, max_num_seqs=64, enable_prefix_caching=False,
        ))  # fmt: skip

    engine = loop.run_until_complete(start())

    async def run(prompts: list[list[int]], new: int) -> None:
        async def one(prompt: list[int]) -> int:
            sampling = SamplingParams(
                temperature=0, max_tokens=new, ignore_eos=True, detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            name, count = f"{time.perf_counter_ns()}", 0
            async for out in engine.generate({"prompt_token_ids": prompt}, sampling, name):
                count += len(out.outputs[0].token_ids)
            return count

        assert await asyncio.gather(*map(one, prompts)) == [new] * len(prompts)

    def block(prompts: list[list[int]], new: int) -> float:
        start = time.perf_counter()
        loop.run_until_complete(run(prompts, new))
        return time.perf_counter() - start

    return block


def roof(model: str, dtype: str) -> Block:
    """No engine: the process only reads memory."""
    return lambda prompts, new: 0.0


def read_memory() -> float:
    """Bytes per second of reading memory once, by all threads: the fastest of some tries."""
    import torch

    block = torch.ones(1 << 27)
    took = []
    for _ in range(5):
        start = time.perf_counter()
        torch.dot(block, block)
        took.append(time.perf_counter() - start)
    return block.numel() * 4 / min(took)


def main(kind: str, model: str, threads: str, dtype: str) -> None:
    out = os.fdopen(os.dup(1), "w")  # engines and their children may print; only answers go out
    os.dup2(2, 1)
    if kind != "vllm":
        import torch

        torch.set_num_threads(int(threads))
    kinds = {"generate": generate, "batching": batching, "vllm": vllm, "roof": roof}
    block = kinds[kind](model, dtype)
    out.write("null\n")  # ready
    out.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        told = read_memory() if "roof" in asked else block(asked["prompts"], asked["new"])
        out.write(json.dumps(told) + "\n")
        out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
