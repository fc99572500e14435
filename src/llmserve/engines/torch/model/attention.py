"""One attention function for transformers' models: a ragged batch in one row, KV in slabs.

`Step` travels through the model's forward as the keyword STEP (`layout.py`). Keys and values are
written to the slabs, then decode rows attend over a view of their slab, the GQA group taken as the
query's length, and prefill chunks one by one.

No mask function is registered with transformers: for an attention name without one it makes none.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from llmserve.engines.torch.model.batch_layout import Decodes, PrefillChunk, Step

NAME = "llmserve_ragged"
STEP = "llmserve_step"
HONOURED = frozenset({"dropout", "is_causal", "output_attentions", "position_ids", "use_cache"})
"""Keywords that models hand to attention and that change nothing here."""


class UnsupportedModel(ValueError):
    """The model computes attention in a way that this engine would get wrong."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: heads first, `[1, heads, tokens, dim]`."""
    step: Step | Probe | None = extra.pop(STEP, None)
    if step is None:
        raise UnsupportedModel("it does not hand keywords on to its attention")
    if isinstance(step, Probe):
        step.see(module, query, key, value, extra)
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None
    layer: int = module.layer_idx  # type: ignore[assignment]  # every attention module has it
    queries, keys, values = (fresh[0].transpose(0, 1) for fresh in (query, key, value))
    return mix(step, layer, queries, keys, values, scaling)[None], None


def mix(
    step: Step, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scaling: float | None
) -> Tensor:
    """Store keys and values, and attend; all are `[tokens, heads, dim]`."""
    for write in step.writes:
        for cache, fresh in zip(write.layers[layer], (keys, values), strict=True):
            own = fresh if len(step.writes) == 1 else fresh[write.first : write.last]
            cache.index_copy_(0, write.index, own.reshape(-1, fresh.shape[-1]))
    if len(step.decodes) == 1 and not step.chunks and step.together is None:
        return _attend_decodes(step.decodes[0], layer, queries, scaling)
    out = queries.new_empty(*queries.shape[:2], values.shape[2])
    for group in step.decodes:
        rows = slice(group.first, group.last)
        out[rows] = _attend_decodes(group, layer, queries[rows], scaling)
    for chunk in step.chunks:
        _attend_chunk(chunk, layer, (queries, keys, values), scaling, out)
    if step.together is not None:
        step.together(queries, keys, values, scaling, out)
    return out


def _attend_decodes(
    group: Decodes, layer: int, queries: Tensor, scaling: float | None
) -> Tensor:
    heads, dim = queries.shape[1:]
    kv_heads = group.slab.geometry.heads
    if group.slots is not None:
        spread = queries.new_zeros(group.span, heads, dim)
        spread[group.slots] = queries
        queries = spread
    keys, values = group.layers[layer]
    out = scaled_dot_product_attention(
        queries.reshape(group.span, kv_heads, heads // kv_heads, dim),
        keys,
        values,
        attn_mask=group.mask,
        scale=scaling,
    ).reshape(group.span, heads, -1)
    return out if group.slots is None else out[group.slots]


def _attend_chunk(
    chunk: PrefillChunk,
    layer: int,
    fresh: tuple[Tensor, Tensor, Tensor],
    scaling: float | None,
    out: Tensor,
) -> None:
    query, key, value = (t[chunk.first : chunk.last].transpose(0, 1)[None] for t in fresh)
    if chunk.mask is not None:
        key = chunk.slab.keys[layer, chunk.slot : chunk.slot + 1, :, : chunk.end]
        value = chunk.slab.values[layer, chunk.slot : chunk.slot + 1, :, : chunk.end]
    mixed = scaled_dot_product_attention(
        query, key, value,
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    out[chunk.first : chunk.last] = mixed[0].transpose(0, 1)


class Probe:
    """Stands in for a step once, to learn what the model's layers ask of attention."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.shapes: dict[int, tuple[int, int, int]] = {}

    def see(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]
    ) -> None:
        window = extra.pop("sliding_window", None)
        if window is not None and window < self.longest:
            raise UnsupportedModel(
                f"its attention slides over a window of {window} tokens, which this engine does "
                f"not do; start it with max_model_len={window}, where both are the same"
            )
        said = {k for k, v in extra.items() if v is not None and v is not False}
        strange = said - HONOURED
        if strange:
            raise UnsupportedModel(f"its attention needs {', '.join(sorted(strange))}")
        if not getattr(module, "is_causal", True) or extra.get("is_causal") is False:
            raise UnsupportedModel("its attention is not causal")
        layer = getattr(module, "layer_idx", None)
        if layer is None or layer in self.shapes:
            raise UnsupportedModel("its layers are not numbered one by one")
        self.shapes[layer] = (key.shape[1], key.shape[3], value.shape[3])
