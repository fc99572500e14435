from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmserve.core.knobs import Knobs
from llmserve.engines.batching.step_planner import StepPlanner
from llmserve.engines.torch.kv.store import Geometry, KvStore
from llmserve.engines.torch.model.select_forward import load
from llmserve.engines.torch.options import parse
from llmserve.engines.torch.step_loop import StepLoop
from llmserve.engines.torch.text.detokenize import Detokenizer
from llmserve.engines.torch.text.tokenizer import open_tokenizer
from support.tiny_models import SHAPE, Drive, Driven, save_model


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """OpenMP threads that wait for each other are slow beside other busy processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama with grouped queries."""
    from transformers import LlamaConfig

    return save_model(tmp_path_factory.mktemp("llama"), LlamaConfig(**SHAPE))


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2: biases in attention, tied embeddings."""
    from transformers import Qwen2Config

    config = Qwen2Config(**SHAPE, tie_word_embeddings=True)
    return save_model(tmp_path_factory.mktemp("qwen2"), config)


@pytest.fixture(scope="session")
def drive() -> Drive:
    """`drive(folder, kv_blocks=…, **knobs)`: a runner; models are loaded once."""
    loaded: dict[tuple[Path, str, str], Any] = {}

    def make(
        folder: Path,
        *,
        kv_blocks: int = 4096,
        block_size: int = 4,
        forward: str = "auto",
        dtype: str = "float32",
        prefix_caching: bool = True,
        scores_per_step: int = 4096,
        store: Callable[[Geometry], KvStore] = KvStore,
        **knobs: object,
    ) -> Driven:
        if (folder, forward, dtype) not in loaded:
            loaded[folder, forward, dtype] = load(
                parse({"model": folder, "dtype": dtype, "device": "cpu", "forward": forward})
            )
        model = loaded[folder, forward, dtype]
        planner = StepPlanner(
            kv_blocks=kv_blocks, block_size=block_size, max_model_len=model.max_model_len,
            prefix_caching=prefix_caching, scores_per_step=scores_per_step,
        )
        detokenizer = Detokenizer(open_tokenizer(folder).backend)
        runner = StepLoop(
            model, detokenizer, planner, Knobs().changed(knobs), seed=1, kv=store(model.geometry)
        )
        return Driven(runner)

    return make
