"""From documents to rows of tokens: which positions are learned, and rows of like lengths.

Every document begins a row, so none is cut at its front and none sees its neighbour; documents of
about the same length share a batch, so that little of it is padding.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from tokenizers import Tokenizer

from llmserve.models.training.corpus import MANY, Document, documents
from llmserve.models.training.export import CONTEXT, END, SPECIALS, START

POOL = 3000
ROW_TOKENS = 2048
STEP_TOKENS = 5120
PAD_ID, END_ID = 0, SPECIALS.index(END)

Sample = tuple[list[int], list[int]]


def pieces(document: Document) -> list[tuple[str, bool]]:
    """A document in ChatML, split where learning starts and stops; only answers are learned."""
    parts: list[tuple[str, bool]] = []
    for role, text in document.turns:
        if role == "text":
            return [(text + END, True)]
        parts.append((f"{START}{role}\n", False))
        parts.append((text + END, role == "assistant"))
        parts.append(("\n", False))
    return parts


def encode(tokenizer: Tokenizer, batch: list[Document]) -> list[Sample]:
    """Tokens of each document, and at each position the next token if it is to be learned."""
    split = [pieces(document) for document in batch]
    flat = tokenizer.encode_batch_fast([text for parts in split for text, _ in parts])
    codes = iter(flat)
    samples = []
    for parts in split:
        tokens: list[int] = []
        learned: list[bool] = []
        for _, wanted in parts:
            ids = next(codes).ids
            tokens += ids
            learned += [wanted] * len(ids)
        after = zip(tokens[1:], learned[1:], strict=True)
        following = [token if use else -1 for token, use in after]
        samples.append((tokens[:-1][:CONTEXT], following[:CONTEXT]))
    return samples


@dataclass(frozen=True)
class TrainingBatch:
    tokens: torch.Tensor
    wanted: torch.Tensor


def pad(samples: list[Sample]) -> TrainingBatch:
    """Rows of one length, a multiple of eight so that compiled kernels see few shapes."""
    width = -(-max(len(tokens) for tokens, _ in samples) // 8) * 8
    tokens = torch.full((len(samples), width), PAD_ID)
    wanted = torch.full((len(samples), width), -1)
    for row, (ids, following) in enumerate(samples):
        tokens[row, : len(ids)] = torch.tensor(ids)
        wanted[row, : len(ids)] = torch.tensor(following)
    return TrainingBatch(tokens, wanted)


def group(samples: list[Sample], rng: random.Random) -> list[TrainingBatch]:
    """Cut documents, sorted by length, into batches of at most `ROW_TOKENS` tokens, shuffled."""
    ordered = sorted(samples, key=lambda sample: len(sample[0]))
    cuts, width = [0], 0
    for index, (tokens, _) in enumerate(ordered):
        width = len(tokens)
        if index > cuts[-1] and (index + 1 - cuts[-1]) * width > ROW_TOKENS:
            cuts.append(index)
    batches = [pad(ordered[a:b]) for a, b in pairwise([*cuts, len(ordered)])]
    rng.shuffle(batches)
    return batches


def steps(
    tokenizer: Tokenizer, seed: int, skip: int = 0, stories: float = MANY
) -> Iterator[list[TrainingBatch]]:
    """Endless optimizer steps of about `STEP_TOKENS` tokens; `skip` pools were seen before."""
    pool = skip
    held: list[TrainingBatch] = []
    while True:
        fresh = list(documents(seed + 1000 * (pool + 1), POOL, stories))
        held += group(encode(tokenizer, fresh), random.Random(seed + pool))
        pool += 1
        while sum(batch.tokens.numel() for batch in held) > STEP_TOKENS:
            step: list[TrainingBatch] = []
            while sum(batch.tokens.numel() for batch in step) < STEP_TOKENS:
                step.append(held.pop())
            yield step
