"""Log-probabilities in OpenAI's two shapes, chat's and the older one of /v1/completions, and in
vLLM's of a prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from llmserve.core.types import Chunk, Outcome, PromptLogprobs, TokenLogprob
from llmserve.entrypoints.http.token_places import TokenPlace, TokenPlaces
from llmserve.entrypoints.http.token_texts import TokenTexts, numbered

_LOWEST = -9999.0
"""Sent instead of minus infinity, which JSON does not have; as OpenAI and vLLM do."""

Placed = tuple[TokenPlace, TokenLogprob | None]
"""A token in its text; without a log-probability where it is a prompt's first."""


class PlacedLogprobs:
    """One reply's log-probabilities, each as soon as its text is sent."""

    def __init__(self, texts: TokenTexts, *, offset: int = 0, included: bool = False) -> None:
        """offset: where the reply begins in the text that is sent. included: it ends with what
        ended it."""
        self._places = TokenPlaces(texts, offset=offset)
        self._included = included
        self._waiting: deque[TokenLogprob] = deque()

    def of(self, sent: Chunk | Outcome) -> list[Placed]:
        """Those that are certain with this; all of them at the end."""
        tokens = sent.logprobs or ()
        self._waiting += tokens
        placed = self._places.push(sent.text, [token.token_id for token in tokens])
        if sent.finish_reason is not None:
            cut = isinstance(sent.stop_reason, str)
            silent = sent.finish_reason == "stop" and not cut
            placed += self._places.end(cut=cut, silent=silent and not self._included)
        return [(place, self._waiting.popleft()) for place in placed]


def chat_logprobs(placed: Iterable[Placed], texts: TokenTexts) -> dict[str, Any]:
    content = [
        {
            "token": texts[place.token_id],
            "logprob": _finite(token),
            "bytes": None if place.data is None else list(place.data),
            "top_logprobs": [_entry(other, value, texts) for other, value in _top(token)],
        }
        for place, token in placed
    ]
    return {"content": content, "refusal": None}


def _entry(token_id: int, value: float, texts: TokenTexts) -> dict[str, Any]:
    data = texts.data(token_id)
    return {
        "token": texts[token_id],
        "logprob": max(value, _LOWEST),
        "bytes": None if data is None else list(data),
    }


def legacy_logprobs(placed: Sequence[Placed], texts: TokenTexts, most: int) -> dict[str, Any]:
    """most: alternatives beside each token's own."""
    return {
        "text_offset": [place.offset for place, _ in placed],
        "token_logprobs": [_finite(token) for _, token in placed],
        "tokens": [texts[place.token_id] for place, _ in placed],
        "top_logprobs": [_by_text(token, texts, most) for _, token in placed],
    }


def prompt_logprobs(
    found: PromptLogprobs | None, texts: TokenTexts, most: int
) -> list[dict[str, Any] | None] | None:
    """vLLM's shape: by token id, the prompt's own token first."""
    if found is None:
        return None
    return [None if token is None else _by_id(token, texts, most) for token in found]


def _by_id(token: TokenLogprob, texts: TokenTexts, most: int) -> dict[str, Any]:
    ranked = {other: (value, rank) for rank, (other, value) in enumerate(token.top[:most], 1)}
    ranked = {token.token_id: (token.logprob, token.rank or 0)} | ranked
    return {
        str(other): {
            "logprob": max(value, _LOWEST), "rank": rank, "decoded_token": texts[other],
        }
        for other, (value, rank) in ranked.items()
    }  # fmt: skip


def _by_text(
    token: TokenLogprob | None, texts: TokenTexts, most: int
) -> dict[str, float] | None:
    """The token itself and the likeliest. Where two read alike, only one can have the name."""
    if token is None:
        return None
    own = texts[token.token_id]
    found: dict[str, float] = {}
    for other, value in (*token.top[:most], (token.token_id, token.logprob)):
        name = texts[other]
        if other != token.token_id and (name == own or name in found):
            name = numbered(other)
        found[name] = max(value, _LOWEST)
    return found


def _finite(token: TokenLogprob | None) -> float | None:
    return None if token is None else max(token.logprob, _LOWEST)


def _top(token: TokenLogprob | None) -> tuple[tuple[int, float], ...]:
    return () if token is None else token.top
