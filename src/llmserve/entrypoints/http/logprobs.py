"""Log-probabilities in OpenAI's two shapes: chat's, and the older one of /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from llmserve.core.types import TokenLogprob
from llmserve.engines.tokenizer import Tokenizer

_LOWEST = -9999.0
"""Sent instead of minus infinity, which JSON does not have; as OpenAI and vLLM do."""
_CACHED_TOKENS = 32_768


class TokenTexts:
    """Tokens as text, each decoded alone. Part of a UTF-8 character decodes to U+FFFD."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode = lru_cache(_CACHED_TOKENS)(lambda token_id: tokenizer.decode([token_id]))

    def __getitem__(self, token_id: int) -> str:
        return self._decode(token_id)


def chat_logprobs(logprobs: Sequence[TokenLogprob], texts: TokenTexts) -> dict[str, Any]:
    content = [
        {
            **_entry(token.token_id, token.logprob, texts),
            "top_logprobs": [_entry(token_id, value, texts) for token_id, value in token.top],
        }
        for token in logprobs
    ]
    return {"content": content, "refusal": None}


def _entry(token_id: int, value: float, texts: TokenTexts) -> dict[str, Any]:
    text = texts[token_id]
    return {"token": text, "logprob": max(value, _LOWEST), "bytes": list(text.encode())}


class LegacyLogprobs:
    """Keeps the offset in the reply's text from chunk to chunk."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._offset = 0

    def of(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        tokens = [self._texts[token.token_id] for token in logprobs]
        offsets = []
        for text in tokens:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "text_offset": offsets,
            "token_logprobs": [max(token.logprob, _LOWEST) for token in logprobs],
            "tokens": tokens,
            "top_logprobs": [
                {self._texts[token_id]: max(value, _LOWEST) for token_id, value in entries}
                for entries in (
                    (*token.top, (token.token_id, token.logprob)) for token in logprobs
                )
            ],
        }
