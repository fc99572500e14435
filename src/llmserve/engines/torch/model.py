"""The model: loaded by transformers' Auto classes, run flat, refused where it would be wrong.

`load` refuses what it can see in the configuration, then probes the layers, then compares short
sequences with the model's own attention: a model that this engine does not understand must fail
here and not answer nonsense. Faster ways to compute the same are taken where they pass that
comparison too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmserve.engines.torch import attention
from llmserve.engines.torch.attention import Part, Probe, Step, UnsupportedModel, layout
from llmserve.engines.torch.compact import Compact, fits
from llmserve.engines.torch.kv import Geometry, KvStore
from llmserve.engines.torch.linears import Kernels, fix_linears, wide_rows
from llmserve.engines.torch.options import TorchOptions

CHECKS = (12, 9)
"""Lengths of the sequences that a model must compute right, side by side, to be taken."""
CHECK_CHUNK = 7
TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest relative difference of logits, of two attention kernels in that precision."""
TOLERANCE_INT8 = 0.25
"""With weights in int8: what still leaves a model itself."""
SMALL_HIDDEN = 512
"""Up to this width a CPU's bfloat16 products take two to three times as long as float32 ones."""
PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention"})


Compute = Callable[[Step, Tensor, Tensor, Tensor], Tensor]
"""A step, its token ids and their positions, and the rows wanted; logits of these rows."""


@dataclass(slots=True)
class FlatModel:
    """Runs steps of a causal language model."""

    network: Any  # a transformers PreTrainedModel; what computes may have taken its layers
    compute: Compute
    path: str
    """How it computes, in words."""
    parameters: int
    geometry: Geometry
    max_model_len: int
    vocab_size: int
    eos_ids: frozenset[int]

    @torch.inference_mode()
    def forward(self, step: Step, tokens: list[int], wanted: list[int]) -> Tensor:
        """Logits in float32 of the rows `wanted`; `tokens` lie in the order of `step.order`."""
        device = self.geometry.device
        positions = [p for part in step.order for p in range(part.start, part.start + part.tokens)]
        return self.compute(
            step,
            torch.tensor(tokens, device=device),
            torch.tensor(positions, device=device),
            torch.tensor(wanted, dtype=torch.long, device=device),
        ).float()


class General:
    """Computes by transformers' modelling code."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __call__(self, step: Step, ids: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        logits: Tensor = self._network(
            input_ids=ids[None],
            position_ids=positions[None],
            logits_to_keep=wanted,
            use_cache=False,
            **{attention.STEP: step},
        ).logits
        return logits[0]


def load(options: TorchOptions) -> FlatModel:
    """Raises UnsupportedModel, or what transformers raises for a model it cannot find or read."""
    ways = {"auto": ("compact", "packed", "plain"), "general": ("packed", "plain")}
    model, expected = read(options)
    for way in ways.get(options.forward, (options.forward,)):
        if way == "plain" and options.quantization is None:
            return model
        try:
            if way != "plain" and accelerate(model, way, options.quantization):
                difference = check_against(model, expected, options.quantization)
                if options.quantization is not None:
                    model.path += f", {options.quantization} (logits {difference:.1%} off)"
                return model
        except (AttributeError, RuntimeError, TypeError, UnsupportedModel) as error:
            if options.forward == way:
                raise UnsupportedModel(f"its {way} form fails: {error}") from error
            model, expected = read(options)  # its layers are taken apart
    form = options.forward if options.quantization is None else options.quantization
    raise UnsupportedModel(f"the torch engine has no {form} form of this model here")


def read(options: TorchOptions) -> tuple[FlatModel, Tensor]:
    """The model by transformers' code, proven right, and the logits that proved it."""
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
            max_model_len, vocab_size, eos_ids(network),
        )
        network.set_attn_implementation(own_attention)
        expected = own_logits(model)
        network.set_attn_implementation(attention.NAME)
        check_against(model, expected)
    except UnsupportedModel as error:
        kind = type(network).__name__
        raise UnsupportedModel(f"the torch engine cannot run {kind}: {error}") from None
    return model, expected


@torch.inference_mode()
def accelerate(model: FlatModel, way: str, quantization: str | None = None) -> bool:
    """Compute in a faster way from now on; False, and all as it was, where it is not for this
    model. Whatever it raises, the network may be in pieces."""
    on_cpu = model.geometry.device.type == "cpu"
    if quantization is not None and not on_cpu:
        raise UnsupportedModel(f"{quantization} is for CPUs")
    wide = wide_rows(model.geometry.dtype) if on_cpu else None
    kernels = Kernels(wide, int8=quantization == "int8")
    if way == "compact":
        if not fits(model.network, model.geometry, model.max_model_len):
            return False
        model.compute = Compact(model.network, model.geometry, model.max_model_len, kernels)
        model.path = "compact, fused products"
        return True
    if not on_cpu:
        return False
    fix_linears(model.network, kernels)
    model.path += ", products packed"
    return True


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
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private: may be renamed
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


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


def eos_ids(network: Any) -> frozenset[int]:
    """Tokens that end a reply, from the generation settings first, as `generate` does."""
    settings = getattr(network, "generation_config", None)
    eos = getattr(settings, "eos_token_id", None)
    if eos is None:
        eos = getattr(network.config.get_text_config(), "eos_token_id", None)
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else eos)


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


def check_ids(length: int, vocab_size: int) -> list[int]:
    return [(7 * i + 3 * length) % vocab_size for i in range(length)]


@torch.inference_mode()
def own_logits(model: FlatModel) -> Tensor:
    """Of the last token of each checked sequence, by the network alone."""
    rows = [
        torch.tensor([check_ids(length, model.vocab_size)], device=model.geometry.device)
        for length in CHECKS
    ]
    return torch.stack(
        [model.network(input_ids=row, use_cache=False).logits[0, -1].float() for row in rows]
    )


@torch.inference_mode()
def check_against(model: FlatModel, expected: Tensor, quantization: str | None = None) -> float:
    """Two chunks and a decode step of ragged sequences must give these logits, and so must that
    step of each alone; how far off."""
    kv = KvStore(model.geometry)
    ids = {str(length): check_ids(length, model.vocab_size) for length in CHECKS}
    for owner, its in ids.items():
        kv.reserve(owner, len(its), 0)
    for start, end in ((0, CHECK_CHUNK), (CHECK_CHUNK, -1)):
        _checked(model, kv, ids, start, end)
    together = _checked(model, kv, ids, -1, None)
    alone = [_checked(model, kv, {owner: its}, -1, None) for owner, its in ids.items()]
    off = _difference(torch.cat([together, *alone]), torch.cat([expected, expected]))
    near = TOLERANCE[model.geometry.dtype] if quantization is None else TOLERANCE_INT8
    if not off <= near:
        raise UnsupportedModel(f"its logits come out {off:.1%} off")
    return off


def _checked(
    model: FlatModel, kv: KvStore, ids: dict[str, list[int]], start: int, end: int | None
) -> Tensor:
    """Logits after this stretch of each sequence."""
    parts = [Part(owner, range(len(its))[start], len(its[start:end])) for owner, its in ids.items()]
    step = layout(parts, kv)
    tokens, ends = [], {}
    for part in step.order:
        tokens += ids[part.owner][start:end]
        ends[part.owner] = len(tokens) - 1
    return model.forward(step, tokens, [ends[owner] for owner in ids])


def _difference(mine: Tensor, expected: Tensor) -> float:
    """The largest of a row, relative; NaN where there is one."""
    off = (mine - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-9)
    return float(off.max())
