"""Where a decode step's time goes: the engine's own loop in this process, without its child."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from llmserve.core.types import SamplingParams

STEPS = 40
OVERHEAD = ("planning", "layout", "sampling", "replies", "messages")
"""What the issue of speed calls overhead: all that is not the model's own products."""
WITHIN_FORWARD = ("linears", "attention", "masks")


def some_prompts(batch: int, vocab_size: int, length: int = 64) -> list[list[int]]:
    dice = random.Random(1)
    return [[dice.randrange(3, vocab_size) for _ in range(length)] for _ in range(batch)]


@contextmanager
def clocked(spent: dict[str, float], name: str, owner: object, attribute: str) -> Iterator[None]:
    """Adds up the seconds within a function while open."""
    real = getattr(owner, attribute)

    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return real(*arguments, **named)
        finally:
            spent[name] += time.perf_counter() - start

    with mock.patch.object(owner, attribute, timed):
        yield


def opened(options: dict[str, Any], batch: int, sampling: SamplingParams) -> Any:
    """A runner with `batch` requests of 64 tokens in it, ten steps on."""
    from llmserve.core.knobs import Knobs
    from llmserve.engines.batching.step_planner import StepPlanner
    from llmserve.engines.process.messages import SubmitRequest
    from llmserve.engines.torch import step_loop as runner
    from llmserve.engines.torch.model.select_forward import load
    from llmserve.engines.torch.options import parse
    from llmserve.engines.torch.sampling.guided_decoding import Grammars
    from llmserve.engines.torch.text.detokenize import Detokenizer
    from llmserve.engines.torch.text.tokenizer import open_tokenizer

    parsed = parse(options)
    model, tokenizer = load(parsed), open_tokenizer(Path(parsed.model_path)).backend
    planner = StepPlanner(kv_blocks=4096, block_size=16, max_model_len=model.max_model_len)
    grammars = Grammars(tokenizer, model.vocab_size, model.eos_ids)
    running = runner.StepLoop(
        model, Detokenizer(tokenizer), planner, Knobs(), grammars=grammars, seed=1
    )
    for i, prompt in enumerate(some_prompts(batch, model.vocab_size)):
        told = running.handle(SubmitRequest(str(i), tuple(prompt), sampling))
        assert told is None, told
    for _ in range(10):
        running.step()
    return running


def profile(options: dict[str, Any], batch: int) -> dict[str, float]:
    """Seconds of a decode step, by part."""
    from llmserve.engines.torch import step_loop as runner
    from llmserve.engines.torch.model import attention, packed_linears
    from llmserve.engines.torch.model import compact_llama as compact
    from llmserve.engines.torch.model import flat_model as flat
    from llmserve.engines.torch.model.flat_model import FlatModel

    sampling = SamplingParams(max_tokens=3 * STEPS + 20, temperature=0, ignore_eos=True)
    running = opened(options, batch, sampling)
    spent: dict[str, float] = defaultdict(float)
    few = running._model.few
    places = [
        ("planning", running.planner, "plan"), ("planning", running.planner, "commit"),
        ("planning", running.planner, "record"), ("layout", runner, "arrange"),
        ("masks", flat, "layout"), *[("linears", type(few), "__call__")] * (few is not None),
        ("forward", FlatModel, "forward"), ("sampling", runner, "draw"),
        ("replies", runner.StepLoop, "_advance"),
        *[("linears", kind, name) for kind in packed_linears.KINDS for name in ("__call__", "add")],
        ("attention", compact, "mix"), ("attention", attention, "mix"),
    ]  # fmt: skip
    whole = 0.0
    encode = msgspec.msgpack.Encoder().encode
    for _ in range(STEPS):  # first without the clocks, which cost some themselves
        start = time.perf_counter()
        encode(running.step())
        whole += time.perf_counter() - start
    with ExitStack() as stack:
        for name, owner, attribute in places:
            stack.enter_context(clocked(spent, name, owner, attribute))
        for _ in range(STEPS):
            start = time.perf_counter()
            stepped = running.step()
            spent["step"] += time.perf_counter() - start
            start = time.perf_counter()
            encode(stepped)
            spent["messages"] += time.perf_counter() - start
    if few is not None:
        products = without_attention(running, few)
        spent["attention"] = max(0.0, spent["linears"] - products)
        spent["linears"] -= spent["attention"]
    return {name: seconds / STEPS for name, seconds in {**spent, "unclocked": whole}.items()}


def without_attention(running: Any, few: Any) -> float:
    """Seconds of the kernels in as many more steps, all rows of which attend to position 0 alone:
    they do all in one call, so what their attention takes is what is missing then."""
    real, spent = type(few).__call__, defaultdict[str, float](float)

    def first(
        self: Any, ids: list[int], positions: list[int], places: list[Any], wanted: list[int]
    ) -> Any:
        return real(self, ids, [0] * len(positions), places, wanted)

    with (
        mock.patch.object(type(few), "__call__", first),
        clocked(spent, "kernels", type(few), "__call__"),
    ):
        for _ in range(STEPS):
            running.step()
    return spent["kernels"]


def print_profile(spent: dict[str, float], batch: int) -> None:
    parts = dict(spent)
    whole = parts.pop("unclocked")
    step = parts.pop("step") + parts["messages"]
    within = {name: parts.pop(name, 0.0) for name in WITHIN_FORWARD}
    parts["rest of forward"] = parts.pop("forward") - sum(within.values())
    parts["layout"] += within.pop("masks")
    parts |= {name: seconds for name, seconds in within.items() if seconds}
    parts["rest"] = step - sum(parts.values())
    told = ", ".join(
        f"{name} {seconds / step:.1%}"
        for name, seconds in sorted(parts.items(), key=lambda item: -item[1])
    )
    overhead = sum(parts[name] for name in OVERHEAD) / step
    took = f"{whole * 1e3:.2f} ms ({step * 1e3:.2f} with clocks)"
    print(f"  a decode step of {batch}: {took}: {told}")
    print(f"    planning, layout, sampling, replies and messages together: {overhead:.1%}")
