"""Prompts of an exact length in the engine's own tokens, each unlike the others."""

from __future__ import annotations

import random

from llmserve.bench.load.workload import Arrival
from llmserve.engines.tokenizer import Tokenizer

_TEXT = (
    "a lighthouse stood by the sea and its keeper read old letters while rain fell on grey stones "
    "until one morning ships came home with salt bread apples and news from far green islands"
)
_WORDS = tuple(_TEXT.split())


def prompt_of(
    tokenizer: Tokenizer, arrival: Arrival, run_salt: int = 0, history: tuple[int, ...] = ()
) -> tuple[int, ...]:
    """What was said before, then the group's own beginning, then words of this request alone.

    `run_salt` makes all prompts of a run unlike those of another run.
    """
    shared = arrival.prefix_tokens
    head = make_prompt(tokenizer, shared, arrival.prefix_salt ^ run_salt) if shared else ()
    own = make_prompt(tokenizer, arrival.prompt_tokens - shared, arrival.salt ^ run_salt)
    return (*history, *head, *own)


def text_of(arrival: Arrival, run_salt: int = 0, history: str = "") -> str:
    """The same as text of about as many words, where no tokenizer is at hand."""
    shared = arrival.prefix_tokens
    parts = [make_text(shared, arrival.prefix_salt ^ run_salt)] if shared else []
    parts.append(make_text(arrival.prompt_tokens - shared, arrival.salt ^ run_salt))
    return " ".join([history, *parts] if history else parts)


def make_prompt(tokenizer: Tokenizer, tokens: int, salt: int) -> tuple[int, ...]:
    """Token ids of plain words. `salt` stands in front, so that no prefix cache helps."""
    ids: list[int] = []
    words = max(1, tokens // getattr(tokenizer, "tokens_per_word", 1))
    while len(ids) < tokens:
        ids = tokenizer.encode(make_text(words, salt))
        words *= 2
    return tuple(ids[:tokens])


def make_text(words: int, salt: int) -> str:
    """Plain words behind the salt: for a server whose tokenizer is not at hand."""
    drawn = random.Random(salt).choices(_WORDS, k=words)
    return f"{salt:x} {' '.join(drawn)}"
