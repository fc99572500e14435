"""Loading a model by transformers' Auto classes, refused where the engine would be wrong with it.

`read` refuses what it can see in the configuration, then probes the layers, then compares short
sequences with the model's own attention (`verify.py`): a model that this engine does not
understand must fail here and not answer nonsense.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmserve.engines.torch.cpu_isa import allows
from llmserve.engines.torch.kv.store import Geometry
from llmserve.engines.torch.model import attention
from llmserve.engines.torch.model.attention import Probe, UnsupportedModel
from llmserve.engines.torch.model.flat_model import FlatModel, General
from llmserve.engines.torch.model.verify import check_against, own_logits
from llmserve.engines.torch.options import TorchOptions

SMALL_HIDDEN = 512
"""Up to this width a CPU's bfloat16 products take two to three times as long as float32 ones."""
PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention"})


def read(options: TorchOptions) -> tuple[FlatModel, list[Tensor]]:
    """The model by transformers' code, proven right, and the logits that proved it. Raises
    UnsupportedModel, or what transformers raises for a model it cannot find or read."""
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

    AttentionInterface.register(attention.NAME, attention.attend)
    source = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    config = AutoConfig.from_pretrained(options.model_path, **source)
    text_config = config.get_text_config()
    max_model_len = pick_max_model_len(options.max_model_len, text_config)
    check_config(text_config, max_model_len)
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device, getattr(text_config, "hidden_size", 0))
    network = AutoModelForCausalLM.from_pretrained(
        options.model_path, config=config, dtype=dtype, **source
    )
    network = network.to(device).eval().requires_grad_(False)
    vocab_size = network.get_input_embeddings().weight.shape[0]
    parameters = sum(weight.numel() for weight in network.parameters())
    own_attention = config._attn_implementation
    try:
        network.set_attn_implementation(attention.NAME)
        geometry = probe(network, max_model_len)
        model = FlatModel(
            network, General(network), "transformers' modelling code", parameters, geometry,
            max_model_len, vocab_size, eos_ids(network), type(network).__name__,
        )
        network.set_attn_implementation(own_attention)
        expected = own_logits(model)
        network.set_attn_implementation(attention.NAME)
        check_against(model, expected)
    except UnsupportedModel as error:
        kind = type(network).__name__
        raise UnsupportedModel(f"the torch engine cannot run {kind}: {error}") from None
    return model, expected


def pick_device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def pick_dtype(wanted: str, device: torch.device, hidden_size: int) -> torch.dtype:
    """bfloat16 where it is the faster one, else float32; or what was asked for."""
    if wanted == "auto":
        big = hidden_size > SMALL_HIDDEN
        fast = device.type == "cuda" or (big and _cpu_multiplies_bfloat16())
        return torch.bfloat16 if fast else torch.float32
    dtype: torch.dtype = getattr(torch, wanted)
    return dtype


def _cpu_multiplies_bfloat16() -> bool:
    checks = {  # private: may be renamed
        "avx512_bf16": "_is_avx512_bf16_supported",
        "amx": "_is_amx_tile_supported",
    }
    return any(
        allows(level) and getattr(torch.cpu, name, lambda: False)()
        for level, name in checks.items()
    )


def pick_max_model_len(wanted: int | None, config: Any) -> int:
    known: int | None = getattr(config, "max_position_embeddings", None)
    if wanted is not None and known is not None and wanted > known:
        raise ValueError(f"max_model_len={wanted} is more than the model's own {known} positions")
    return wanted or known or 2048


def check_config(config: Any, max_model_len: int) -> None:
    """Refuse what the layers' own calls would not show."""
    layers = getattr(config, "layer_types", None) or []
    strange = sorted(set(layers) - PLAIN_LAYERS)
    if strange:
        raise UnsupportedModel(f"the torch engine has no {', '.join(strange)} layers")
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in layers if layers else window is not None
    slides = slides and getattr(config, "use_sliding_window", True)
    if slides and window is not None and window < max_model_len:
        raise UnsupportedModel(
            f"the model's attention slides over a window of {window} tokens, which the torch "
            f"engine does not do; start it with max_model_len={window}, where both are the same"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    known = getattr(config, "max_position_embeddings", None)
    trained = rope.get("original_max_position_embeddings") or known
    if rope.get("rope_type") in ("dynamic", "longrope") and max_model_len > (trained or 0):
        raise UnsupportedModel(
            f"{rope['rope_type']} positions depend on what else is in the batch; start the "
            f"engine with max_model_len={trained}, up to which they do not"
        )


@torch.inference_mode()
def probe(network: Any, max_model_len: int) -> Geometry:
    seen = Probe(max_model_len)
    ids = torch.zeros(1, 1, dtype=torch.long, device=network.device)
    network(input_ids=ids, position_ids=ids, use_cache=False, **{attention.STEP: seen})
    count = network.config.get_text_config().num_hidden_layers
    if sorted(seen.shapes) != list(range(count)):
        raise UnsupportedModel(
            f"{len(seen.shapes)} of its {count} layers use the attention given to them"
        )
    if len(set(seen.shapes.values())) != 1:
        raise UnsupportedModel("its layers have keys of different shapes")
    heads, key_dim, value_dim = seen.shapes[0]
    return Geometry(count, heads, key_dim, value_dim, network.dtype, network.device)


def eos_ids(network: Any) -> frozenset[int]:
    """Tokens that end a reply, from the generation settings first, as `generate` does."""
    settings = getattr(network, "generation_config", None)
    eos = getattr(settings, "eos_token_id", None)
    if eos is None:
        eos = getattr(network.config.get_text_config(), "eos_token_id", None)
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else eos)
