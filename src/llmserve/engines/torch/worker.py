"""The engine's process: `python -m llmserve.engines.torch.worker FD`, started by `engine.py`.

The link to the kernel opens before torch is imported, so that a kernel which dies during the
seconds of loading takes this process along.
"""

from __future__ import annotations

import gc
import os
import queue
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from llmserve.engines.process.child import ParentLink
from llmserve.engines.process.messages import Busy, Failed, Ready, Reformed
from llmserve.engines.process.reports import send
from llmserve.engines.torch import cpu_isa
from llmserve.engines.torch.messages import LoadModel, ToWorker
from llmserve.engines.torch.options import TorchOptions

if TYPE_CHECKING:
    from llmserve.engines.torch.model.flat_model import FlatModel
    from llmserve.engines.torch.model.open_model import Unproven
    from llmserve.engines.torch.sampling.guided_decoding import Grammars
    from llmserve.engines.torch.step_loop import StepLoop
    from llmserve.engines.torch.text.tokenizer import ModelTokenizer

WAKE = object()
"""In the inbox: a thread of this process wants a moment between two steps."""

SCORED_LOGITS = 2**26
"""At most so many logits of prompts in a step: a quarter of a GiB, three times while they are
made, whatever `max_num_batched_tokens` is."""


def main() -> None:
    link = ParentLink(int(sys.argv[1]), msgspec.msgpack.Decoder(ToWorker).decode)
    try:
        import_torch()
        message = link.inbox.get()
        assert isinstance(message, LoadModel)
        runner, ready, unproven = prepare(message, lambda what: send(link, Busy(what)))
    except BaseException as error:
        traceback.print_exc()
        send(link, Failed(f"{type(error).__name__}: {error}"))
        link.flush(5.0)
        os._exit(1)
    send(link, ready)
    if unproven is not None:
        serve_unproven(runner, link, unproven)
    if "transformers" in sys.modules:  # its networks leave cycles; without it there is no garbage
        gc.collect()
    gc.freeze()  # what loading left is there to stay
    serve(runner, link)


def import_torch() -> None:
    """Before the first message has come: the kernel imports its own meanwhile. Asks no device."""
    gc.disable()  # importing torch makes no garbage, and looking for it takes a tenth of that time
    for name in ("step_loop", "model.open_model", "text.tokenizer"):
        import_module(f"llmserve.engines.torch.{name}")


def prepare(
    message: LoadModel, busy: Callable[[str], None]
) -> tuple[StepLoop, Ready, Unproven | None]:
    """Load the model, reporting what it is busy with; raises whatever makes that impossible. The
    last one is of a faster form that is to be proven while this one serves."""
    started = time.monotonic()
    options = message.options
    import_torch()
    import torch

    from llmserve.engines.batching.step_planner import StepPlanner
    from llmserve.engines.torch.kv.budget import kv_budget, kv_capacity
    from llmserve.engines.torch.kv.store import KvStore
    from llmserve.engines.torch.model.open_model import open_model
    from llmserve.engines.torch.step_loop import StepLoop
    from llmserve.engines.torch.text.detokenize import Detokenizer
    from llmserve.engines.torch.text.tokenizer import open_tokenizer

    gc.freeze()
    gc.enable()
    torch.set_num_threads(options.thread_count)
    opened = open_model(options, busy, plain_first=True)
    model = opened.model
    if model.geometry.device.type == "cuda":
        speed_up(model, options)
    folder = model_folder(options)
    tokenizer = open_tokenizer(folder, options.trust_remote_code)
    capacity = kv_capacity(options, model.geometry, model.max_model_len)
    planner = StepPlanner(
        kv_blocks=capacity // options.block_size,
        block_size=options.block_size,
        max_model_len=model.max_model_len,
        prefix_caching=options.enable_prefix_caching,
        scores_per_step=SCORED_LOGITS // model.vocab_size,
    )
    grammars = open_grammars(tokenizer, model)
    budget = kv_budget(capacity, model.geometry)
    kv = KvStore(model.geometry, budget=budget)
    runner = StepLoop(
        model, Detokenizer(tokenizer.backend), planner, message.knobs, options.seed, grammars, kv
    )
    ready = Ready(
        folder=str(folder),
        max_model_len=planner.room,
        kv_capacity_tokens=capacity,
        vocab_size=model.vocab_size,
        device=str(model.geometry.device),
        dtype=str(model.geometry.dtype).removeprefix("torch."),
        structured_outputs=grammars is not None,
        details=describe(model, options)
        | {
            "proof": opened.proof,
            "kv_memory": f"{budget / 1e6:,.1f} MB at most",
            "loaded_s": f"{time.monotonic() - started:.1f}",
        },
    )
    return runner, ready, opened.unproven


def speed_up(model: FlatModel, options: TorchOptions) -> None:
    from llmserve.engines.torch.model import cuda

    cuda.speed_up(
        model,
        kernel=cuda.varlen(),
        capture=None if options.enforce_eager else cuda.CudaCapture(),
        most_rows=2 * options.max_num_seqs_ceiling,  # with their padding
    )


def open_grammars(tokenizer: ModelTokenizer, model: FlatModel) -> Grammars | None:
    """None where the tokenizer allows no replies of a given form."""
    from llmserve.engines.torch.sampling.guided_decoding import Grammars

    try:
        return Grammars(tokenizer.backend, model.vocab_size, model.eos_ids)
    except ValueError:
        return None


def model_folder(options: TorchOptions) -> Path:
    """The folder itself, or where the hub's files of the model were put."""
    if options.is_folder:
        return Path(options.model_path)
    from transformers.utils.hub import cached_file

    config: Any = cached_file(options.model_path, "config.json", revision=options.revision)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        cached_file(
            options.model_path, name, revision=options.revision,
            _raise_exceptions_for_missing_entries=False,
        )
    return Path(config).parent


def describe(model: FlatModel, options: TorchOptions) -> dict[str, str]:
    """Facts for people."""
    level = cpu_isa.limit()
    limited = {} if level is None else {"cpu_isa": f"{level} at most ({cpu_isa.VARIABLE})"}
    return limited | {
        "architecture": model.architecture,
        "parameters": f"{model.parameters / 1e6:,.1f} M",
        "forward": model.path,
        "attention": f"{'sdpa' if model.few is None else 'fused'} over KV slabs, a ragged batch",
        "threads": str(options.thread_count),
        "omp_wait_policy": options.omp_wait_policy,
        "prefix caching": str(options.enable_prefix_caching),
        "kv_bytes_per_token": str(model.geometry.token_bytes),
    }


def serve(runner: StepLoop, link: ParentLink) -> None:
    """Step while there is work, else wait for a message. The process ends in the link's reader."""
    while True:
        turn(runner, link)


def serve_unproven(runner: StepLoop, link: ParentLink, unproven: Unproven) -> None:
    """As `serve`, until a faster form is proven and taken."""
    from llmserve.engines.torch.late_form import LateForm

    late = LateForm(
        unproven,
        lambda what: send(link, Busy(what)),
        wake=lambda: link.inbox.put(WAKE),
    )
    late.begin()
    while (details := late.settle(runner)) is None:
        turn(runner, link, lambda: late.asks(runner))
    send(link, Reformed(details))


def turn(
    runner: StepLoop, link: ParentLink, asked: Callable[[], bool] = lambda: False
) -> None:
    """One step and what came before it; a wait where there is nothing to do and nobody asked for
    a moment between two steps."""
    while answer_one(runner, link, block=False):
        pass
    stepped = runner.step()
    if stepped is not None:
        send(link, stepped)
    elif not asked():
        answer_one(runner, link, block=True, timeout_s=runner.wake_in())


def answer_one(
    runner: StepLoop, link: ParentLink, *, block: bool, timeout_s: float | None = None
) -> bool:
    """Handle the next message; False where none has come."""
    try:
        message = link.inbox.get(block, timeout_s)
    except queue.Empty:
        return False
    if message is WAKE:
        return True
    answer = runner.handle(message)  # type: ignore[arg-type]  # the decoder admits no other
    if answer is not None:
        send(link, answer)
    return True


if __name__ == "__main__":
    main()
