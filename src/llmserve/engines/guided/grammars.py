"""Structured outputs as llguidance reads them. Without torch: the kernel checks them too."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from llmserve.core.types import Structured
from llmserve.engines.guided.closed_schemas import closed, readable
from llmserve.engines.guided.closing import DeadEnd, Exits

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
        return str(LLMatcher.grammar_from_json_schema(_schema(structured), defaults=style))
    if structured.kind == "grammar":
        return str(LLMatcher.grammar_from_lark(structured.text))
    if structured.kind == "regex":
        return str(LLMatcher.grammar_from_regex(structured.text))
    # one regex: as alternatives of a grammar, 50,000 choices took five seconds, and four times that
    # with each doubling
    choices = "|".join(map(_literally, json.loads(structured.text)))
    return str(LLMatcher.grammar_from_regex(choices))


def _schema(structured: Structured) -> str:
    try:
        schema = structured.schema
        return json.dumps(readable(closed(schema) if structured.strict else schema))
    except RecursionError:
        raise ValueError("the schema is nested too deeply") from None


def _literally(text: str) -> str:
    """A regex for just this text."""
    return "".join(f"\\x{{{ord(char):x}}}" for char in text)


def matcher(structured: Structured, tokenizer: Any) -> Any:
    """Return a matcher on a tokenizer of llguidance's. ValueError where none can be made, or no
    text fits it."""
    from llguidance import LLMatcher, LLParserLimits

    # its log goes to the error stream, which is kept for the engine's last words
    limits = LLParserLimits(max_grammar_size=MOST_SYMBOLS, max_items_in_row=MOST_SYMBOLS)
    found = LLMatcher(tokenizer, grammar_of(structured), log_level=0, limits=limits)
    if found.is_error():
        raise ValueError(reason_of(found.get_error()))
    if found.is_stopped() and not found.is_accepting():
        raise DeadEnd("no text fits it")
    return found


def reason_of(error: str) -> str:
    """All that llguidance says, in one line, without its listing of the grammar."""
    lines = [line for line in error.splitlines() if line and not line.startswith(" ")]
    return " ".join(line.removeprefix("error: ") for line in lines)


def check(structured: Structured) -> None:
    """Raise ValueError with the reason where no reply can be constrained so."""
    shortest(structured)


def shortest(structured: Structured) -> list[int] | None:
    """The bytes of a short reply that fits, or None where one is hard to find: what takes its
    first mask, and more, before any model does. ValueError where there is none."""
    # not `validate_grammar`, which builds less: what it had let through failed in the engine
    tokenizer, exits = _bytes()
    return exits.find(matcher(_in_bytes(structured), tokenizer), some=True)


def takes(structured: Structured, text: str) -> bool:
    """Whether a reply may be empty, and may be that text as well. ValueError as above."""
    found = matcher(_in_bytes(structured), _bytes()[0])
    empty = found.is_accepting()
    return bool(empty and found.consume_tokens([*text.encode()]) and found.is_accepting())


_TOKENS = re.compile(r"<\[[0-9,*^-]+\]>|<\|[^|>\s]*\|>")
"""How a grammar names tokens of a model."""


def _in_bytes(structured: Structured) -> Structured:
    """With one token beyond the bytes in place of those of a model."""
    if structured.kind != "grammar":
        return structured
    return Structured("grammar", _TOKENS.sub("<[258]>", structured.text))


@cache
def _bytes() -> tuple[Any, Exits]:
    from llguidance import LLTokenizer

    tokenizer = LLTokenizer("byte")
    return tokenizer, Exits(tokenizer)
