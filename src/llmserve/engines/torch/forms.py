"""Forms of replies as llguidance reads them. Without torch, for the kernel checks them too."""

from __future__ import annotations

import json
from typing import Any

from llmserve.core import Structured

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As json.dumps writes: where whitespace is free, a weak model writes nothing else."""


def grammar_of(form: Structured) -> str:
    """The form as llguidance reads it. ValueError where it cannot."""
    from llguidance import LLMatcher

    if form.kind == "json":
        style: Any = JSON_STYLE
        return str(LLMatcher.grammar_from_json_schema(form.text, defaults=style))
    if form.kind == "regex":
        return str(LLMatcher.grammar_from_regex(form.text))
    choices = " | ".join(json.dumps(one, ensure_ascii=False) for one in json.loads(form.text))
    return str(LLMatcher.grammar_from_lark(f"start: {choices}"))


def check(form: Structured) -> None:
    """ValueError with the reason where no reply can be held to the form."""
    from llguidance import LLMatcher

    wrong = LLMatcher.validate_grammar(grammar_of(form))
    if wrong and not wrong.startswith("WARNING"):
        raise ValueError(wrong.splitlines()[0])
