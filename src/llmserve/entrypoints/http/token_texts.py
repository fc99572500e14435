"""Tokens as an answer writes them, and the bytes that they stand for."""

from __future__ import annotations

from functools import lru_cache

from llmserve.engines.tokenizer import Tokenizer

_CACHED_TOKENS = 32_768


class TokenTexts:
    """Of one tokenizer, for answers of one kind."""

    def __init__(
        self, tokenizer: Tokenizer, *, special: bool = False, as_ids: bool = False
    ) -> None:
        """special: the text has the names of special tokens. as_ids: tokens are written as
        `token_id:17`, as vLLM's `return_tokens_as_token_ids` has them."""
        self._tokenizer = tokenizer
        self._special, self._as_ids = special, as_ids
        self.name = lru_cache(_CACHED_TOKENS)(tokenizer.token_name)
        self.data = lru_cache(_CACHED_TOKENS)(self._data)
        self._written = lru_cache(_CACHED_TOKENS)(self._write)
        self._kinds: dict[tuple[bool, bool], TokenTexts] = {(special, as_ids): self}

    def __getitem__(self, token_id: int) -> str:
        return self._written(token_id)

    def of_kind(self, *, special: bool, as_ids: bool) -> TokenTexts:
        """The same tokens for answers of another kind."""
        if (special, as_ids) not in self._kinds:
            made = TokenTexts(self._tokenizer, special=special, as_ids=as_ids)
            self._kinds[special, as_ids] = made
        return self._kinds[special, as_ids]

    def _data(self, token_id: int) -> bytes | None:
        """The bytes it adds to a text; None where it adds none, being special."""
        found = self._tokenizer.token_bytes(token_id)
        if found is None and self._special:
            return self.name(token_id).encode()
        return found

    def _write(self, token_id: int) -> str:
        """Its text; as OpenAI, `bytes:\\xe2\\x80` for part of a character, and a special token's
        name."""
        if self._as_ids:
            return numbered(token_id)
        data = self.data(token_id)
        if not data:
            return self.name(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def numbered(token_id: int) -> str:
    return f"token_id:{token_id}"
