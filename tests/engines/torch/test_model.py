"""Which models are taken: those that come out right, and a reason for each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmserve.engines.torch.model import attention, flat_model, loading
from llmserve.engines.torch.model.attention import UnsupportedModel
from llmserve.engines.torch.model.loading import pick_dtype, pick_max_model_len
from llmserve.engines.torch.model.select_forward import load
from llmserve.engines.torch.options import parse
from support.tiny_models import SHAPE, VOCAB, Drive, generate, reference, save_model

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def configured(name: str, **changes: Any) -> Any:
    import transformers

    return getattr(transformers, name)(**SHAPE | changes)


def opened(folder: Path, **options: object) -> flat_model.FlatModel:
    return load(parse({"model": folder, "dtype": "float32", "device": "cpu", **options}))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("GPT2Config", {}),
        ("MistralConfig", {"sliding_window": None}),
        ("Qwen3Config", {"head_dim": 16}),
        ("Qwen3MoeConfig", {"head_dim": 16, **EXPERTS}),
        ("Gemma3TextConfig", {"head_dim": 16}),
        ("DeepseekV3Config", {
            "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "v_head_dim": 12,
            "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "n_routed_experts": 4, "n_group": 1,
            "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        }),
    ],
)
def test_architectures_equal_generate_on_the_general_path(
    name: str, changes: dict[str, Any], tmp_path: Path, drive: Drive
) -> None:
    folder = save_model(tmp_path, configured(name, **changes))
    given = [[3 + (7 * i + j * j) % (VOCAB - 3) for j in range(5 + 6 * i)] for i in range(4)]
    driven = drive(folder, forward="general", kv_blocks=40, max_num_batched_tokens=9)
    for i, prompt in enumerate(given):
        driven.submit(str(i), prompt, max_tokens=12, temperature=0)
        driven.step()
    driven.finish()
    network = reference(folder)
    for i, prompt in enumerate(given):
        assert driven.tokens(str(i)) == generate(network, prompt, 12)


@pytest.mark.parametrize(
    ("name", "changes", "options", "reason"),
    [
        ("MistralConfig", {"sliding_window": 64}, {}, "max_model_len=64"),
        ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 32}, {}, "max_model_len=32"),
        ("Gemma2Config", {"head_dim": 16, "sliding_window": 512}, {}, "softcap"),
        ("GptOssConfig", {"head_dim": 16, "num_local_experts": 4}, {"max_model_len": 128}, "s_aux"),
        ("Llama4TextConfig", {"head_dim": 16, "num_local_experts": 2}, {}, "chunked_attention"),
        ("MambaConfig", {}, {}, "linear_attention"),
        ("StableLmConfig", {}, {}, "does not hand keywords on"),
        ("BertConfig", {}, {}, "not causal"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # transformers' own, about kernels that are not installed
def test_a_model_that_would_come_out_wrong_is_refused(
    name: str, changes: dict[str, Any], options: dict[str, object], reason: str, tmp_path: Path
) -> None:
    folder = save_model(tmp_path, configured(name, **changes))
    with pytest.raises(UnsupportedModel, match=reason):
        opened(folder, **options)


def test_a_window_no_shorter_than_the_context_is_taken(tmp_path: Path) -> None:
    folder = save_model(tmp_path, configured("MistralConfig", sliding_window=64))
    assert opened(folder, max_model_len=64).max_model_len == 64


def test_an_attention_that_computes_wrongly_is_noticed(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = attention._attend_chunk

    def forgetful(*arguments: Any) -> None:
        real(*arguments)
        arguments[-1].mul_(0.9)

    # transformers' code and the compact form share it, so no form of the model is left
    monkeypatch.setattr(attention, "_attend_chunk", forgetful)
    with pytest.raises(UnsupportedModel, match="off"):
        opened(llama)


def test_positions_that_depend_on_the_batch_are_refused() -> None:
    config = configured("LlamaConfig")
    config.rope_parameters = {
        "rope_type": "longrope", "original_max_position_embeddings": 256, "rope_theta": 1e4,
    }
    with pytest.raises(UnsupportedModel, match="max_model_len=256"):
        loading.check_config(config, 512)
    loading.check_config(config, 256)


def test_a_longer_context_than_the_model_has_is_refused(llama: Path) -> None:
    with pytest.raises(ValueError, match="512 positions"):
        opened(llama, max_model_len=513)


def test_context_without_a_known_limit_has_one() -> None:
    assert pick_max_model_len(None, object()) == 2048
    assert pick_max_model_len(99, object()) == 99


def test_bfloat16_is_the_default_only_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(loading, "_cpu_multiplies_bfloat16", lambda fast=fast: fast)
        assert pick_dtype("auto", cpu, 2048) is expected
        assert pick_dtype("auto", cpu, 256) is torch.float32
    assert pick_dtype("auto", torch.device("cuda"), 256) is torch.bfloat16
    assert pick_dtype("float16", cpu, 256) is torch.float16


def test_end_tokens_come_from_the_generation_settings_first(llama: Path) -> None:
    network = opened(llama).network
    assert loading.eos_ids(network) == {2}
    network.generation_config.eos_token_id = [5, 9]
    assert loading.eos_ids(network) == {5, 9}
    network.generation_config.eos_token_id = None
    assert loading.eos_ids(network) == {2}


def test_bfloat16_runs(llama: Path) -> None:
    assert load(parse({"model": llama, "dtype": "bfloat16", "device": "cpu"})).geometry.dtype == (
        torch.bfloat16
    )
