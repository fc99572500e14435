"""Tokenising a text without delaying the streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

_LONG_TEXT = 20_000
"""Characters from which tokenising leaves the loop's thread: it would delay every stream."""

T = TypeVar("T")


async def tokenised(length: int, tokenise: Callable[[Any], T], text: Any) -> T:
    if length < _LONG_TEXT:
        return tokenise(text)
    return await asyncio.to_thread(tokenise, text)
