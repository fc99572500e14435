"""What an error says of what a user gave: the value, cut short, and the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST, _KEPT = 200, 60
_MOST_TOLD = 100
_CLOSE = 0.7


def shown(value: object) -> str:
    """As it would be typed; where that is long, or cannot be written at all, what it is."""
    try:
        text = repr(value)
    except Exception:  # Python refuses so long a number, and a class of the user's may anything
        if isinstance(value, int):
            return "a number of thousands of digits"
        return f"{_article(type(value).__name__)} that cannot be written out"
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_KEPT]}… ({len(text):,} characters)"


def meant(
    word: object,
    known: Iterable[str],
    *,
    listed: Iterable[str] | None = None,
    called: str = "there is",
) -> str:
    """How an error about `word` ends: `; did you mean X?`, or what there is, where that is little
    enough to read.

    listed: what is told in place of all that is `known`; nothing where it is empty.
    """
    names = {_folded(name): name for name in known}
    typed = word if isinstance(word, str) else shown(word)
    if near := _near(_folded(typed), names):
        return f"; did you mean {names[near]}?"
    told = [*(names.values() if listed is None else listed)]
    return f"; {called} {', '.join(told)}" if 0 < len(told) <= _MOST_TOLD else ""


def _near(word: str, names: Iterable[str]) -> str | None:
    begun = [name for name in names if len(word) > 1 and name.startswith(word)]
    close = begun or difflib.get_close_matches(word, names, n=1, cutoff=_CLOSE)
    within = close or [name for name in names if len(word) > 3 and word in name]
    return within[0] if within else None


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
