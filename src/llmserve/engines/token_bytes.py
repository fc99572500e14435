"""What each token of a Hugging Face tokenizer adds to a text: bytes, as it may be half a character.

Read from the vocabulary as the tokenizer's own decoder would: byte-level BPE, ▁ for a space, single
bytes as `<0xE2>`, `##` for the rest of a word. What is of neither kind is decoded behind another
token, and what that adds is taken. The space with which a text would begin is one of these bytes,
though a decoder leaves it out there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
Spell = Callable[[str], bytes]
"""From a token as the vocabulary has it to its bytes."""


class TokenBytes:
    """Looks each token up once."""

    def __init__(self, tokenizer: Any) -> None:
        """Takes a tokenizers.Tokenizer, or a tokenizer of transformers."""
        self._tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
        self._added = _added_tokens(self._tokenizer)
        decoder = getattr(self._tokenizer, "decoder", None)
        self.byte_level = type(decoder).__name__ == "ByteLevel"
        self._spell = _speller(self._tokenizer, decoder)
        self.exact = self._spell is not None
        """The bytes are the vocabulary's own, not read off decoded text."""
        self._known: dict[int, bytes | None] = {
            token: None if special else content.encode()
            for token, (content, special) in self._added.items()
        }

    def of(self, token: int) -> bytes | None:
        """None of a special token, which has a name and adds nothing to a text."""
        if token not in self._known:
            self._known[token] = self._look_up(token)
        return self._known[token]

    def name(self, token: int) -> str:
        """As the vocabulary writes it."""
        if token in self._added:
            return self._added[token][0]
        return self._piece(token) or f"token_id:{token}"

    def _look_up(self, token: int) -> bytes:
        piece = self._piece(token)
        if piece is None:  # a model may have more rows than its tokenizer has tokens
            return b""
        return self._decoded(token) if self._spell is None else self._spell(piece)

    def _piece(self, token: int) -> str | None:
        look_up = getattr(self._tokenizer, "id_to_token", None)
        if look_up is None:
            look_up = self._tokenizer.convert_ids_to_tokens
        try:
            found: str | None = look_up(token)
        except (IndexError, KeyError, OverflowError, ValueError):
            return None
        return found

    def _decoded(self, token: int) -> bytes:
        """What it adds behind itself, where that can be told apart."""
        once: str = self._tokenizer.decode([token], skip_special_tokens=True)
        twice: str = self._tokenizer.decode([token, token], skip_special_tokens=True)
        return (twice[len(once) :] if twice.startswith(once) else once).encode()


def byte_characters() -> list[str]:
    """GPT-2's character for each byte: printable ones stand for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _added_tokens(tokenizer: Any) -> dict[int, tuple[str, bool]]:
    """Content, and whether it is special."""
    if hasattr(tokenizer, "get_added_tokens_decoder"):
        added = tokenizer.get_added_tokens_decoder()
        return {token: (one.content, one.special) for token, one in added.items()}
    special = getattr(tokenizer, "all_special_ids", ())
    return {token: (tokenizer.convert_ids_to_tokens(token), True) for token in special}


def _speller(tokenizer: Any, decoder: Any) -> Spell | None:
    """None where each token must be decoded."""
    if decoder is None:
        # a slow tokenizer, or one whose tokens are joined by spaces
        return _pieces if hasattr(tokenizer, "convert_ids_to_tokens") else _word
    form: Mapping[str, Any] = json.loads(decoder.__getstate__())
    steps = form.get("decoders", (form,))
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        return _byte_level()
    if kinds == {"WordPiece"}:
        prefix = str(steps[0]["prefix"])
        return lambda piece: _word(piece) if piece[: len(prefix)] != prefix else piece[
            len(prefix) :
        ].encode()
    if not kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return None
    replaced: dict[str, str] = {}
    for step in steps:
        if step["type"] == "Replace":
            if "String" not in step["pattern"]:
                return None
            replaced[step["pattern"]["String"]] = step["content"]
        elif step["type"] == "Metaspace":
            replaced[step["replacement"]] = " "
    return lambda piece: _pieces(piece, replaced, single="ByteFallback" in kinds)


def _byte_level() -> Spell:
    of_character = {char: byte for byte, char in enumerate(byte_characters())}

    def spell(piece: str) -> bytes:
        try:
            return bytes([of_character[char] for char in piece])
        except KeyError:  # not in the byte alphabet: the tokenizer takes such tokens as they are
            return piece.encode()

    return spell


def _pieces(piece: str, replaced: Mapping[str, str] = {"▁": " "}, single: bool = True) -> bytes:
    if single and (byte := _BYTE.fullmatch(piece)) is not None:
        return bytes([int(byte[1], 16)])
    for old, new in replaced.items():
        piece = piece.replace(old, new)
    return piece.encode()


def _word(piece: str) -> bytes:
    return f" {piece}".encode()
