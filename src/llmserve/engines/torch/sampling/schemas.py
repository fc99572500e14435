"""Structured outputs as llguidance reads them. Without torch: the kernel checks them too."""

from __future__ import annotations

import json
from typing import Any

from llmserve.core.types import Structured

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As json.dumps writes: where whitespace is free, a weak model writes nothing else."""

MOST_SYMBOLS = 25_000
"""Of a grammar: some 6,000 required properties, or 3,000 optional ones. The engine compiles one
between two steps, and with more it took seconds."""


def grammar_of(structured: Structured) -> str:
    """Return the grammar that llguidance reads. ValueError where there is none."""
    from llguidance import LLMatcher

    if structured.kind == "json":
        style: Any = JSON_STYLE
        return str(LLMatcher.grammar_from_json_schema(structured.text, defaults=style))
    if structured.kind == "regex":
        return str(LLMatcher.grammar_from_regex(structured.text))
    # one regex: as alternatives of a grammar, 50,000 choices took five seconds, and four times that
    # with each doubling
    choices = "|".join(map(_literally, json.loads(structured.text)))
    return str(LLMatcher.grammar_from_regex(choices))


def _literally(text: str) -> str:
    """A regex for just this text."""
    return "".join(f"\\x{{{ord(char):x}}}" for char in text)


def matcher(structured: Structured, tokenizer: Any) -> Any:
    """Return a matcher on a tokenizer of llguidance's. ValueError where none can be made."""
    from llguidance import LLMatcher, LLParserLimits

    # its log goes to the error stream, which is kept for the engine's last words
    limits = LLParserLimits(max_grammar_size=MOST_SYMBOLS)
    found = LLMatcher(tokenizer, grammar_of(structured), log_level=0, limits=limits)
    if found.is_error():
        raise ValueError(reason_of(found.get_error()))
    return found


def reason_of(error: str) -> str:
    """All that llguidance says, in one line, without its listing of the grammar."""
    lines = [line for line in error.splitlines() if line and not line.startswith(" ")]
    return " ".join(line.removeprefix("error: ") for line in lines)


def check(structured: Structured) -> None:
    """Raise ValueError with the reason where no reply can be constrained so."""
    from llguidance import LLTokenizer

    # not `validate_grammar`, which builds less: what it had let through failed in the engine
    matcher(structured, LLTokenizer("byte"))
