"""How long a reply is likely to be: as those of like requests that came to their end."""

from __future__ import annotations

from collections import OrderedDict

from llmserve.core.types import Request

_KINDS = 10_000
"""Kinds of requests remembered; beyond that the one learned from longest ago is forgotten."""
_MEMORY = 32
"""Of so many latest replies the mean is made, the older ones fading."""
_FEWEST = 4
"""Replies before they are believed."""


class OutputLengths:
    """Mean reply per tenant and per length of prompt, to the next power of two."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[tuple[str, int], tuple[int, float]] = OrderedDict()

    def learn(self, request: Request, tokens: int) -> None:
        """Note that a reply came to its own end after so many tokens."""
        kind = _kind(request)
        count, mean = self._kinds.pop(kind, (0, 0.0))
        count = min(count + 1, _MEMORY)
        self._kinds[kind] = count, mean + (tokens - mean) / count
        if len(self._kinds) > _KINDS:
            self._kinds.popitem(last=False)

    def expect(self, request: Request) -> float:
        """Expected reply tokens, never above max_tokens, which it is until enough is known."""
        most = request.sampling.max_tokens
        count, mean = self._kinds.get(_kind(request), (0, 0.0))
        return min(most, mean) if count >= _FEWEST else most


def _kind(request: Request) -> tuple[str, int]:
    return request.tenant, len(request.prompt_ids).bit_length()
