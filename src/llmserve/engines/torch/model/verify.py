"""Whether a way to compute a model gives the logits that the model itself gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from llmserve.engines.torch.kv.store import KvStore
from llmserve.engines.torch.model.attention import UnsupportedModel
from llmserve.engines.torch.model.batch_layout import BatchPart, arrange

if TYPE_CHECKING:
    from llmserve.engines.torch.model.flat_model import FlatModel

LENGTHS = (12, 9)
"""Of the sequences that a model must compute right, side by side, to be taken."""
CHUNK = 7
TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest relative difference of logits, of two attention kernels in that precision."""
TOLERANCE_INT8 = 0.25
"""With weights in int8: what still leaves a model itself."""


class Stretch(NamedTuple):
    """Tokens `start` to `end` of a sequence, in the slot of `owner`."""

    owner: str
    ids: list[int]
    start: int
    end: int


def check_ids(length: int, vocab_size: int) -> list[int]:
    return [(7 * i + 3 * length) % vocab_size for i in range(length)]


@torch.inference_mode()
def own_logits(model: FlatModel) -> list[Tensor]:
    """Of each token of each checked sequence, by the network alone."""
    rows = [
        torch.tensor([check_ids(length, model.vocab_size)], device=model.geometry.device)
        for length in LENGTHS
    ]
    return [model.network(input_ids=row, use_cache=False).logits[0].float() for row in rows]


def check_against(
    model: FlatModel, expected: list[Tensor], quantization: str | None = None
) -> float:
    """Two chunks and a decode step of ragged sequences must give these logits, and so must that
    step of each alone; how far off."""
    kv = KvStore(model.geometry)
    ids = {str(length): check_ids(length, model.vocab_size) for length in LENGTHS}
    before = ((0, CHUNK), (CHUNK, -1))
    for start, end in before:
        after(model, kv, [Stretch(o, its, start, end % len(its)) for o, its in ids.items()])
    last = [Stretch(owner, its, len(its) - 1, len(its)) for owner, its in ids.items()]
    found = [after(model, kv, last), *(after(model, kv, [one]) for one in last)]
    ends = torch.stack([logits[-1] for logits in expected])
    near = TOLERANCE[model.geometry.dtype] if quantization is None else TOLERANCE_INT8
    return within(difference(torch.cat(found), torch.cat([ends, ends])), near)


def check_few(model: FlatModel, expected: list[Tensor]) -> float:
    """Also steps of nine rows and of three, and of three beside a prompt, as kernels for few rows
    may take each number their own way."""
    kv, (long, short) = KvStore(model.geometry), expected
    ids, other = (check_ids(length, model.vocab_size) for length in LENGTHS)
    ends = range(LENGTHS[0] - 9, LENGTHS[0])
    after(model, kv, [Stretch(str(end), ids, 0, end) for end in ends])
    nine = [Stretch(str(end), ids, end, end + 1) for end in ends]
    prompt = Stretch("prompt", other, 0, len(other))
    found = [after(model, kv, step) for step in (nine, nine[3:6], [*nine[6:], prompt])]
    rows = long[-len(ends) :]
    its = torch.cat([rows, rows[3:6], rows[6:], short[-1:]])
    return within(difference(torch.cat(found), its), TOLERANCE[model.geometry.dtype])


def check_again(model: FlatModel, expected: list[Tensor], decodes: bool = True) -> float:
    """Of a form that passed the above at an earlier start: a step of prompts and, where the form
    takes such, one of decodes, both ragged, must give these logits again. Each step reads all
    weights, so few are taken."""
    kv, (long, short) = KvStore(model.geometry), expected
    first, other = (check_ids(length, model.vocab_size) for length in LENGTHS)
    prompts = [
        Stretch("first", first, 0, len(first) - 1), Stretch("other", other, 0, len(other)),
        Stretch("again", other, 0, len(other) - 1),
    ]  # fmt: skip
    found = after(model, kv, prompts)[:2]
    its = [long[-2], short[-1]]
    if decodes:
        last = [
            Stretch("first", first, len(first) - 1, len(first)),
            Stretch("again", other, len(other) - 1, len(other)),
        ]
        found = torch.cat([found, after(model, kv, last)])
        its += [long[-1], short[-1]]
    return within(difference(found, torch.stack(its)), TOLERANCE[model.geometry.dtype])


def after(model: FlatModel, kv: KvStore, stretches: list[Stretch]) -> Tensor:
    """Logits behind each stretch, computed in one step."""
    for one in stretches:
        kv.reserve(one.owner, len(one.ids), one.start)
    by_owner = {one.owner: one for one in stretches}
    parts = [BatchPart(one.owner, one.start, one.end - one.start) for one in stretches]
    batch = arrange(parts, kv)
    tokens: list[int] = []
    ends: dict[str, int] = {}
    for part in batch.order:
        one = by_owner[part.owner]
        tokens += one.ids[one.start : one.end]
        ends[part.owner] = len(tokens) - 1
    return model.forward(batch, tokens, [ends[one.owner] for one in stretches]).clone()


def within(off: float, near: float) -> float:
    if not off <= near:
        raise UnsupportedModel(f"its logits come out {off:.1%} off")
    return off


def difference(mine: Tensor, expected: Tensor) -> float:
    """The largest of a row, relative; NaN where there is one."""
    off = (mine - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-9)
    return float(off.max())
