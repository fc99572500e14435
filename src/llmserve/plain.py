"""Python's own values for what users give: numpy's, pandas' and torch's numbers, and words."""

from __future__ import annotations

import ast
from typing import Any


def plain(value: Any) -> Any:
    """A number as int or float; an array, a column or a range as a list; the rest as it is."""
    if isinstance(value, range):
        return list(value)
    if hasattr(type(value), "tolist"):
        return value.tolist()
    if type(value) in (list, tuple):
        return type(value)(plain(each) for each in value)
    if type(value) is dict:
        return {plain(name): plain(each) for name, each in value.items()}
    return value


def literal(text: str) -> Any:
    """What the text says in Python or in JSON's words; the text itself where that is nothing."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        words = {"true": True, "false": False, "none": None, "null": None}
        return words.get(text.lower(), text)
