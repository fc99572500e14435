"""Python's own values for what a cell counts in: numpy's, pandas' and torch's."""

from __future__ import annotations

from typing import Any


def plain(value: Any) -> Any:
    """A number as int or float; an array, a column or a range as a list; the rest as it is."""
    if isinstance(value, range):
        return list(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if type(value) in (list, tuple):
        return type(value)(plain(each) for each in value)
    if type(value) is dict:
        return {plain(name): plain(each) for name, each in value.items()}
    return value
