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
    words = random.Random(salt)
    text = f"{salt:x}"
    ids: list[int] = []
    while len(ids) < tokens:
        text += " " + " ".join(words.choices(_TEXT.split(), k=tokens))
        ids = tokenizer.encode(text)
    return tuple(ids[:tokens])
