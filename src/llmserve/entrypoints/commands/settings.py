"""Settings and axes as words: `max_num_seqs=8,policy=fifo` and `max_num_seqs=1,8,32`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmserve.core.knobs import SPECS
from llmserve.core.validation import literal, unlike
from llmserve.lab.settings import Setting

AS_IT_IS = "."


def read_setting(text: str) -> Setting:
    """Assignments with commas between them, the name of a policy, or `.` for no change."""
    if text == AS_IT_IS:
        return {}
    if "=" not in text:
        return text
    changes = {}
    for part in text.split(","):
        name, sign, value = part.partition("=")
        if not sign or not name:
            raise unlike("a setting", "name=value,name=value or a policy", text)
        changes[name.strip()] = literal(value.strip())
    return changes


def read_tuning(words: Iterable[str]) -> tuple[str | None, dict[str, list[Any]] | None]:
    """Limits of an SLO (`ttft_p95=300ms`) and knobs to tune (`max_num_seqs=8,32`), told apart by
    their names; None where there are none."""
    given = list(words)
    knobs = [word for word in given if word.partition("=")[0] in SPECS]
    limits = [word for word in given if word not in knobs]
    return " ".join(limits) or None, read_axes(knobs) if knobs else None


def read_axes(words: Iterable[str]) -> dict[str, list[Any]]:
    """`name=1,2,4` to a list of values; a name may come once."""
    axes: dict[str, list[Any]] = {}
    for text in words:
        name, sign, values = text.partition("=")
        if not sign or not values:
            raise unlike("an axis", "name=value,value,…", text)
        if name in axes:
            raise ValueError(f"{name} is given twice")
        axes[name] = [literal(value.strip()) for value in values.strip("[]").split(",")]
    if not axes:
        raise ValueError("a sweep needs an axis: max_num_seqs=1,8,32")
    return axes
