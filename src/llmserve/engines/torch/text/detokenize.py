"""Text of a reply, token by token, that never ends within a UTF-8 character.

What has been pushed, joined, is the text of all tokens; only a character whose last bytes never
came is left out.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from llmserve.engines.token_bytes import TokenBytes

REPLACEMENT = "\ufffd"
CONTEXT = 5
"""Prompt tokens decoded along: sentencepiece drops the space before what it decodes first."""


class TextStream(Protocol):
    def push(self, token: int) -> str:
        """The text that is certain now."""
        ...


class ByteTable:
    """The bytes of each token of a byte-level BPE tokenizer, as they come in a text."""

    def __init__(self, tokens: TokenBytes, *, special: bool = False) -> None:
        """special: whether special tokens come by their names, and not at all else."""
        self._tokens = tokens
        self._special = special
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token: int) -> bytes:
        known = self._known.get(token)
        if known is None:
            found = self._tokens.of(token)
            if found is None:
                found = self._tokens.name(token).encode() if self._special else b""
            known = self._known[token] = found
        return known


class ByteStream:
    """For byte-level BPE: an incremental UTF-8 decoder over the tokens' bytes."""

    def __init__(self, table: ByteTable) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._table[token])


class WindowStream:
    """For any tokenizer: decodes the newest tokens together and returns what that adds.

    A replacement character at the end may be one whose other bytes follow: it is kept until more
    text does, unless the tokens' bytes say that it is the author's own.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        prompt_ids: Sequence[int] = (),
        tokens: TokenBytes | None = None,
    ) -> None:
        self._decode = decode
        self._tokens = tokens
        self._ids = list(prompt_ids[-CONTEXT:])
        self._sent = self._decode(self._ids)
        self._new = 0

    def push(self, token: int) -> str:
        self._ids.append(token)
        self._new += 1
        text = self._decode(self._ids)
        certain = text.rstrip(REPLACEMENT)
        if certain != text and self._whole():
            certain = text
        if len(certain) <= len(self._sent):
            return ""
        added = certain[len(self._sent) :]
        if certain == text:
            self._ids = self._ids[-self._new :]  # these, decoded alone, are the next ones' context
            self._new = 0
            self._sent = self._decode(self._ids)
        else:
            self._sent = certain
        return added


    def _whole(self) -> bool:
        """Whether the newest tokens are known to be whole characters."""
        if self._tokens is None or not self._tokens.exact:
            return False
        try:
            b"".join([self._tokens.of(one) or b"" for one in self._ids[-self._new :]]).decode()
        except UnicodeDecodeError:
            return False
        return True


class Detokenizer:
    """Opens the stream that suits a model's tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """Takes a tokenizers.Tokenizer, or a slow tokenizer of transformers."""
        self._tokens = TokenBytes(tokenizer)
        self._tables = (ByteTable(self._tokens), ByteTable(self._tokens, special=True))
        self._tokenizer = tokenizer

    def open(self, prompt_ids: Sequence[int], *, special: bool = False) -> TextStream:
        """special: whether the text has the names of special tokens."""
        if self._tokens.byte_level:
            return ByteStream(self._tables[special])
        decode = partial(self._decode, special=special)
        return WindowStream(decode, prompt_ids, self._tokens)

    def _decode(self, ids: Sequence[int], *, special: bool) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=not special)
        return text
