"""Text of a reply, token by token, that never ends within a UTF-8 character.

What has been pushed, joined, is the text of all tokens; only a character whose last bytes never
came is left out.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Any, Protocol

REPLACEMENT = "\ufffd"
CONTEXT = 5
"""Prompt tokens decoded along: sentencepiece drops the space before what it decodes first."""


class TextStream(Protocol):
    def push(self, token: int) -> str:
        """The text that is certain now."""
        ...


class ByteTable:
    """The bytes of each token of a byte-level BPE tokenizer; special tokens have none."""

    def __init__(self, tokenizer: Any) -> None:  # a tokenizers.Tokenizer
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {
            token: b"" if added.special else added.content.encode()
            for token, added in tokenizer.get_added_tokens_decoder().items()
        }
        self._bytes = {char: byte for byte, char in enumerate(byte_characters())}

    def __getitem__(self, token: int) -> bytes:
        known = self._known.get(token)
        if known is None:
            known = self._known[token] = self._look_up(token)
        return known

    def _look_up(self, token: int) -> bytes:
        text: str = self._tokenizer.id_to_token(token) or ""
        try:
            return bytes(self._bytes[char] for char in text)
        except KeyError:  # not in the byte alphabet: the tokenizer takes such tokens as they are
            return text.encode()


def byte_characters() -> list[str]:
    """GPT-2's character for each byte: printable ones stand for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


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
    text does.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], prompt_ids: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        self._ids = list(prompt_ids[-CONTEXT:])
        self._sent = self._decode(self._ids)
        self._new = 0

    def push(self, token: int) -> str:
        self._ids.append(token)
        self._new += 1
        text = self._decode(self._ids)
        certain = text.rstrip(REPLACEMENT)
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


class Detokenizer:
    """Opens the stream that suits a model's tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """Takes a tokenizers.Tokenizer, or a slow tokenizer of transformers."""
        decoder = getattr(tokenizer, "decoder", None)
        byte_level = type(decoder).__name__ == "ByteLevel"
        self._table = ByteTable(tokenizer) if byte_level else None
        self._tokenizer = tokenizer

    def open(self, prompt_ids: Sequence[int]) -> TextStream:
        if self._table is not None:
            return ByteStream(self._table)
        return WindowStream(self._decode, prompt_ids)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
