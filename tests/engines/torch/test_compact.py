"""The compact form and packed products: taken where they come out right, and only there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from llmserve.engines.torch import cpu_isa
from llmserve.engines.torch.model import compact_llama, int8_linears, packed_linears
from llmserve.engines.torch.model.attention import UnsupportedModel
from llmserve.engines.torch.model.flat_model import FlatModel
from llmserve.engines.torch.model.int8_linears import Int8
from llmserve.engines.torch.model.packed_linears import Packed, Plain, fixed
from llmserve.engines.torch.model.select_forward import load
from llmserve.engines.torch.options import parse
from support.instruction_sets import MISSING, packs, sums_bytes
from support.tiny_models import SHAPE, VOCAB, Drive, generate, reference, save_model

DYNAMIC = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip


def opened(folder: Path, **options: object) -> FlatModel:
    return load(parse({"model": folder, "dtype": "float32", "device": "cpu", **options}))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "rope_parameters": DYNAMIC}),
        ("LlamaConfig", {"num_key_value_heads": 4, "head_dim": 24}),
        ("LlamaConfig", {"intermediate_size": 77, "mlp_bias": True}),
        ("MistralConfig", {"sliding_window": None}),
        ("Qwen2Config", {"num_key_value_heads": 1}),
        ("Qwen3Config", {"head_dim": 16}),
    ],
)
def test_compact_forms_equal_generate(
    name: str, changes: dict[str, Any], tmp_path: Path, drive: Drive
) -> None:
    import transformers

    config = getattr(transformers, name)(**SHAPE | changes)
    with torch.random.fork_rng():
        folder = save_model(tmp_path, config)
    driven = drive(folder, forward="compact", kv_blocks=90, max_num_batched_tokens=40)
    given = [[3 + (7 * i + j * j) % (VOCAB - 3) for j in range(5 + 30 * i)] for i in range(5)]
    for i, prompt in enumerate(given):
        driven.submit(str(i), prompt, max_tokens=16, temperature=0)
        driven.step()
    driven.finish()
    network = reference(folder)
    for i, prompt in enumerate(given):
        assert driven.tokens(str(i)) == generate(network, prompt, 16)


def test_the_compact_form_is_the_one_taken(llama: Path) -> None:
    model = opened(llama)
    assert isinstance(model.compute, compact_llama.Compact)
    assert model.parameters == sum(weight.numel() for weight in reference(llama).parameters())


def test_a_kind_without_compact_form_says_so(tmp_path: Path) -> None:
    from transformers import GPT2Config

    folder = save_model(tmp_path, GPT2Config(**SHAPE))
    assert "transformers" in opened(folder).path
    with pytest.raises(UnsupportedModel, match="no compact form"):
        opened(folder, forward="compact")


def test_a_compact_form_that_comes_out_wrong_is_not_taken(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact_llama, "silu", torch.nn.functional.gelu)
    model = opened(llama)
    assert not isinstance(model.compute, compact_llama.Compact)
    assert len(model.network.model.layers) == SHAPE["num_hidden_layers"]
    assert isinstance(model.network.model.layers[0].self_attn.q_proj, packed_linears.FixedLinear)
    with pytest.raises(UnsupportedModel, match="compact form fails: its logits come out"):
        opened(llama, forward="compact")


def test_a_compact_form_that_cannot_run_is_not_taken(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact_llama, "rms_norm", None)
    assert not isinstance(opened(llama).compute, compact_llama.Compact)


def test_plain_changes_nothing(llama: Path) -> None:
    model = opened(llama, forward="plain")
    assert type(model.network.model.layers[0].self_attn.q_proj) is nn.Linear


def product(kind: Callable[..., Any], bias: bool, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    weight, shift = torch.randn(48, 40, dtype=dtype), torch.randn(48, dtype=dtype)
    return kind(weight, shift if bias else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 3, 8, 70])
def test_a_packed_product_is_that_of_linear_or_its_instructions_are_named(
    rows: int, bias: bool, dtype: torch.dtype
) -> None:
    if not torch._C._has_mkldnn:
        pytest.skip("this torch has no oneDNN")
    if not packs(dtype, cpu_isa.limit()):
        with pytest.raises(RuntimeError, match=MISSING[dtype]):
            product(Packed, bias, dtype)
        assert isinstance(fixed(torch.randn(48, 40, dtype=dtype)), Plain)
        return
    packed, plain = (product(kind, bias, dtype) for kind in (Packed, Plain))
    assert isinstance(fixed(torch.randn(48, 40, dtype=dtype)), Packed)
    x, to = torch.randn(rows, 40).to(dtype), torch.randn(rows, 48).to(dtype)
    near = packed_linears.TOLERANCE[dtype]
    torch.testing.assert_close(packed(x), plain(x), rtol=near, atol=near * 10)
    torch.testing.assert_close(packed.add(x, to), plain.add(x, to), rtol=near, atol=near * 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0, 1e-4, 3])
def test_the_norm_of_one_row_is_that_of_many(scale: float, dtype: torch.dtype) -> None:
    """Of a row whose mean is far from 0."""
    torch.manual_seed(0)
    weight, x = torch.randn(40).to(dtype), ((torch.randn(1, 40) + 2) * scale).to(dtype)
    alone = compact_llama.Norm(weight, 1e-6, torch.cat((weight, weight)))(x)
    many = compact_llama.Norm(weight, 1e-6, None)(x)
    near = packed_linears.TOLERANCE[dtype]
    torch.testing.assert_close(alone, many, rtol=near, atol=near / 10)


def test_what_comes_out_wrong_for_one_row_alone_is_not_taken(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact_llama, "layer_norm", lambda x, *_: x)
    assert not isinstance(opened(llama).compute, compact_llama.Compact)


def no_such_function(*_: object) -> Tensor:
    raise AttributeError("no such function in this torch")


@pytest.mark.parametrize(
    "packed", [no_such_function, lambda self, x: linear(x, x.new_ones(48, 40))]
)
def test_a_weight_that_packs_wrongly_stays_with_linear(
    packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(48, 40)
    monkeypatch.setattr(Packed, "__call__", packed)
    assert isinstance(fixed(weight), Plain)


@pytest.mark.parametrize("halves", [None, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_row_is_near_and_the_same_whatever_the_others_are(
    bias: bool, dtype: torch.dtype, halves: bool | None
) -> None:
    """As this CPU takes it, and by halves, as one without VNNI does."""
    whole, eighth = product(Plain, bias, dtype), product(partial(Int8, halves=halves), bias, dtype)
    x, to = torch.randn(9, 40).to(dtype), torch.randn(9, 48).to(dtype)
    x[4] *= 100  # a row's scale is its own
    alone = torch.cat([eighth(x[i : i + 1]) for i in range(9)])
    assert torch.equal(eighth(x), alone)
    for mine, its in ((eighth(x), whole(x)), (eighth.add(x, to), whole.add(x, to))):
        off = (mine.float() - its.float()).norm(dim=-1) / its.float().norm(dim=-1)
        assert 0 < off.max() < 0.03


def test_rows_are_taken_by_halves_where_whole_bytes_overflow_and_only_there() -> None:
    assert int8_linears.overflows() is not sums_bytes(cpu_isa.limit())
    largest = torch.ones(48, 40)
    assert Int8(largest, None).halves is int8_linears.overflows()
    halves, whole = (Int8(largest, None, halves=halves)(largest) for halves in (True, False))
    assert (halves - 40).abs().max() < 0.01
    assert bool((whole - 40).abs().max() < 0.01) is not int8_linears.overflows()


def test_halves_are_the_sums_of_whole_bytes() -> None:
    """Of weights so small that no CPU's sums overflow."""
    torch.manual_seed(0)
    weight = torch.randn(48, 40) / 9
    weight[:, 0] = 9.0  # the others take a few steps of 127
    x = torch.randn(9, 40)
    x[:, :2] = 0.0
    one, other = (Int8(weight, None, halves=halves)(x) for halves in (True, False))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_int8_says_how_far_off_it_is_and_what_the_cpu_lacks(llama: Path) -> None:
    how = "" if sums_bytes(cpu_isa.limit()) else f" {int8_linears.BY_HALVES}"
    assert "VNNI" in int8_linears.BY_HALVES
    model = opened(llama, quantization="int8")
    assert f"int8{how} (logits" in model.path
    assert isinstance(model.compute, compact_llama.Compact)
    general = opened(llama, quantization="int8", forward="general")
    assert f"packed, int8{how} (logits" in general.path


@pytest.mark.parametrize(
    ("halves", "reason"),
    [(False, "come out wrong$"), (True, r"come out wrong by halves, .*VNNI .*avx512_vnni")],
)
def test_int8_that_comes_out_wrong_is_refused_with_the_reason(
    halves: bool, reason: str, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Int8.__call__
    monkeypatch.setattr(int8_linears, "overflows", lambda: halves)
    monkeypatch.setattr(Int8, "__call__", lambda self, x: 1.2 * real(self, x))
    reason = f"no int8 form of this model here: its products in int8 {reason}"
    with pytest.raises(UnsupportedModel, match=reason):
        opened(llama, quantization="int8")


@pytest.mark.parametrize("kind", [Packed, Plain])
def test_many_rows_may_be_multiplied_in_float32(kind: type[Packed] | type[Plain]) -> None:
    assert packed_linears.wide_rows(torch.float32) is None
    torch.manual_seed(0)
    weight, shift = torch.randn(48, 40).bfloat16(), torch.randn(48).bfloat16()
    if kind is Packed and not packs(torch.bfloat16, cpu_isa.limit()):
        with pytest.raises(RuntimeError, match=MISSING[torch.bfloat16]):
            kind(weight, shift, 4)
        assert packed_linears.wide_rows(torch.bfloat16) is None
        return
    narrow, wide = kind(weight, shift), kind(weight, shift, 4)
    x, to = torch.randn(5, 40).bfloat16(), torch.randn(5, 48).bfloat16()
    exact = linear(x.float(), weight.float(), shift.float())
    assert torch.equal(wide(x), exact.bfloat16())
    assert torch.equal(wide.add(x, to), (exact + to).bfloat16())
    assert torch.equal(wide(x[:3]), narrow(x[:3]))
