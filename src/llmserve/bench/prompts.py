"""Prompts of an exact length in the engine's own tokens, each unlike the others."""

from __future__ import annotations

import random

from llmserve.engines import Tokenizer

_TEXT = (
    "a lighthouse stood by the sea and its keeper read old letters while rain fell on grey stones "
    "until one morning ships came home with salt bread apples and news from far green islands"
)


def make_prompt(tokenizer: Tokenizer, tokens: int, salt: int) -> tuple[int, ...]:
    """Token ids of plain words. `salt` stands in front, so that no prefix cache helps."""
    ids: list[int] = []
    words = tokens
    while len(ids) < tokens:
        ids = tokenizer.encode(make_text(words, salt))
        words *= 2
    return tuple(ids[:tokens])


def make_text(words: int, salt: int) -> str:
    """Plain words behind the salt: for a server whose tokenizer is not at hand."""
    drawn = random.Random(salt).choices(_TEXT.split(), k=words)
    return f"{salt:x} {' '.join(drawn)}"
