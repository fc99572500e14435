"""Prompts that begin together go through one kernel, where there is one that comes out right.

The kernel here stands in for FlashAttention's, which runs on GPUs alone: same arguments, same sums.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from llmserve.engines.torch.kv.store import Geometry
from llmserve.engines.torch.model.cuda import speed_up, varlen
from llmserve.engines.torch.model.varlen_attention import agrees
from support.tiny_models import VOCAB, Drive, Driven, generate, reference

GEOMETRY = Geometry(2, 2, 8, 8, torch.float32, torch.device("cpu"))
GIVEN = [[3 + (7 * i + j * j) % (VOCAB - 3) for j in range(3 + 6 * i)] for i in range(6)]


class Stand:
    """Attends sequence by sequence, and notes how many came at once."""

    def __init__(self, *, factor: float = 1.0) -> None:
        self.sizes: list[int] = []
        self._factor = factor

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int,
        scaling: float | None,
    ) -> Tensor:
        assert starts.dtype == torch.int32
        bounds = starts.tolist()
        self.sizes.append(len(bounds) - 1)
        parts = []
        for start, end in pairwise(bounds):
            assert end - start <= longest
            q, k, v = (t[start:end].transpose(0, 1)[None] for t in (query, key, value))
            mixed = scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scaling, enable_gqa=True
            )
            parts.append(mixed[0].transpose(0, 1) * self._factor)
        return torch.cat(parts)


@pytest.fixture
def driven(llama: Path, drive: Drive, monkeypatch: pytest.MonkeyPatch) -> Driven:
    """Its model's way of computing is put back afterwards."""
    made = drive(llama, max_num_batched_tokens=40)
    model = made.runner._model
    for name in ("compute", "path"):
        monkeypatch.setattr(model, name, getattr(model, name))
    return made


def finish(driven: Driven, llama: Path) -> None:
    for i, prompt in enumerate(GIVEN):
        driven.submit(str(i), prompt, max_tokens=12, temperature=0)
        if i in (1, 2):
            driven.step()  # others decode already, and a prompt of two chunks is under way
    driven.finish()
    network = reference(llama)
    for i, prompt in enumerate(GIVEN):
        assert driven.tokens(str(i)) == generate(network, prompt, 12)


def test_prompts_taken_together_say_what_generate_says(llama: Path, driven: Driven) -> None:
    stand = Stand()
    speed_up(driven.runner._model, kernel=stand, capture=None, most_rows=8)
    assert "ragged batch" in driven.runner._model.path
    finish(driven, llama)
    assert max(stand.sizes[1:]) > 1, "no two prompts began together"


def test_a_kernel_that_comes_out_wrong_is_not_taken(llama: Path, driven: Driven) -> None:
    stand = Stand(factor=1.1)
    speed_up(driven.runner._model, kernel=stand, capture=None, most_rows=8)
    finish(driven, llama)
    assert stand.sizes == [3], "it was used after its check"


def test_a_kernel_that_fails_is_not_taken() -> None:
    def fail(*_: object) -> Tensor:
        raise RuntimeError("head dimensions of this size are not supported")

    assert not agrees(fail, GEOMETRY)
    assert agrees(Stand(), GEOMETRY)


def test_torchs_own_kernel_is_found_and_is_for_gpus_alone() -> None:
    kernel = varlen()
    assert kernel is not None
    assert not agrees(kernel, GEOMETRY)
