"""Random Llamas for measuring: as transformers saves them, and the same weights as GGUF."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from support.tiny_models import save_model

SHAPES: dict[str, dict[str, int]] = {
    "4M": {
        "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4,
    },
    "235M": {
        "vocab_size": 8192, "hidden_size": 896, "intermediate_size": 2752,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    },
}
CONTEXT = 2048


def make_model(folder: Path, name: str) -> Path:
    """In bfloat16, as all engines of the table are to run it."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        **SHAPES[name], max_position_embeddings=CONTEXT, bos_token_id=None, eos_token_id=2,
        pad_token_id=0,
    )
    save_model(folder, config)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    network.save_pretrained(folder)
    return folder


def read_bytes(name: str, width: int = 2) -> int:
    """Of weights that a decode step reads: all, but of the embedding only the rows looked up."""
    s = SHAPES[name]
    hidden, kv = s["hidden_size"], s["hidden_size"] * s["num_key_value_heads"]
    attention = 2 * hidden * hidden + 2 * hidden * kv // s["num_attention_heads"]
    layer = attention + 3 * hidden * s["intermediate_size"] + 2 * hidden
    return width * (s["num_hidden_layers"] * layer + hidden * (s["vocab_size"] + 1))


def write_gguf(folder: Path, name: str, library: Path | None) -> Path:
    """The model of `folder` for llama.cpp. ImportError without the gguf package, which llama.cpp's
    sources hold too, in the folder `library`."""
    if library is not None:
        sys.path.insert(0, str(library))
    gguf: Any = importlib.import_module("gguf")
    import torch
    from transformers import AutoModelForCausalLM

    s = SHAPES[name]
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    target = folder / "model.gguf"
    writer = gguf.GGUFWriter(target, "llama")
    _describe(writer, s, network.config, gguf.LlamaFileType.MOSTLY_BF16)
    for key, weight in network.state_dict().items():
        short = _gguf_name(key)
        if "q_proj" in key or "k_proj" in key:
            heads = s["num_attention_heads" if "q_proj" in key else "num_key_value_heads"]
            weight = _permuted(weight, heads)
        if weight.dim() == 1:
            writer.add_tensor(short, weight.float().numpy())
        else:
            raw = weight.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(short, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _describe(writer: Any, s: dict[str, int], config: Any, file_type: Any) -> None:
    writer.add_file_type(file_type)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(s["hidden_size"])
    writer.add_block_count(s["num_hidden_layers"])
    writer.add_feed_forward_length(s["intermediate_size"])
    writer.add_head_count(s["num_attention_heads"])
    writer.add_head_count_kv(s["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(s["hidden_size"] // s["num_attention_heads"])
    writer.add_vocab_size(s["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}" for i in range(s["vocab_size"])])
    writer.add_token_types([1] * s["vocab_size"])
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(2)


def _gguf_name(key: str) -> str:
    key = key.removeprefix("model.")
    for theirs, its in (
        ("layers.", "blk."), ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
        ("embed_tokens", "token_embd"), ("lm_head", "output"),
    ):  # fmt: skip
        key = key.replace(theirs, its)
    return "output_norm.weight" if key == "norm.weight" else key


def _permuted(weight: Any, heads: int) -> Any:
    """llama.cpp turns neighbouring pairs, transformers halves."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
