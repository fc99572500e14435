"""The simulator's language: bytes going in, plain English words coming out.

Token ids 0 to 255 are the bytes of UTF-8, so every text can be a prompt and counts one token per
byte. The ids above are whole words, once to open a reply and once with a space in front. The last
one is a "<" that begins a turn's mark in a message's text: with it the text is no mark.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from llmserve.core.validation import wholes
from llmserve.engines.tokenizer import PLAIN_CHAT, ChatOptions

_TEXT = """
    a above across all and another anchor at away bay beacon before began below bell bird boat
    bright by calm came child cliff cloud coast cold dark dawn day deep door down drifted each
    east evening far fish fog found from garden gave green grey gull harbour he her high home in
    into island it keeper kept lamp land lantern later left light lighthouse long looked low mist
    moon morning near net new night north of old on one out over path quiet rain read red rock
    rope rose sail saw sea ship shore silver sky slowly small soft song south star stone storm
    story summer sun swam the then there they through tide to tower town turned under until upon
    voice waited walked warm was water wave west when white wind window winter with wood yellow
"""
WORDS = tuple(_TEXT.split())
OPENING = 256
"""Id of the first word without a space in front; the same words with one follow."""
FOLLOWING = OPENING + len(WORDS)
QUOTED = FOLLOWING + len(WORDS)
"""Id of a "<" that opens no mark."""
VOCABULARY = QUOTED + 1
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What `chat` does, in the words of a template."""
_MARKS = ("<|im_start|>", "<|im_end|>")

_SPREAD, _STEP, _MIX = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_STAND_IN_VOICES = 2**42 - 1
_FEW = 12
"""Fewer words are quicker one by one."""


class WordTokenizer:
    """Satisfies `engines.Tokenizer`. `decode(encode(text)) == text` for all valid Unicode."""

    tokens_per_word = 4
    """Of plain English, at least: so a prompt of so many tokens takes few words."""

    @property
    def chat_template(self) -> str | None:
        """ChatML is written here, by no template."""
        return None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """There is nothing to add."""
        return list(text.encode("utf-8", "replace"))

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are no UTF-8 become the replacement character."""
        ids = wholes("a token id", ids, 0, VOCABULARY - 1)
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """There are no special tokens."""
        if token_id < OPENING:
            return bytes((token_id,))
        return piece(token_id).encode("ascii") if token_id < VOCABULARY else b""

    def token_name(self, token_id: int) -> str:
        if token_id < OPENING:
            return f"<0x{token_id:02X}>"
        return piece(token_id) if token_id < VOCABULARY else f"token_id:{token_id}"

    def settings(self) -> dict[str, Any]:
        return {"tokenizer_class": type(self).__name__, "chat_template": _TEMPLATE}

    def chat(
        self, messages: Sequence[Mapping[str, object]], options: ChatOptions = PLAIN_CHAT
    ) -> list[int]:
        """ChatML, with the assistant's turn opened or the last message's left open."""
        if options.continue_final_message and options.add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt exclude each other")
        read = self.encode if options.allow_special_tokens else self._quoted
        ids: list[int] = []
        for message in messages:
            ids += self.encode("<|im_start|>") + read(str(message.get("role")))
            ids += self.encode("\n") + read(_content(message)) + self.encode("<|im_end|>\n")
        if options.continue_final_message and messages:
            return ids[: -len("<|im_end|>\n")]
        opened = "<|im_start|>assistant\n" if options.add_generation_prompt else ""
        return ids + self.encode(opened)

    def _quoted(self, text: str) -> list[int]:
        """As `encode` does, but for marks: those that the text spells are text."""
        ids = self.encode(text)
        if any(mark in text for mark in _MARKS):
            raw = bytes(ids)
            for mark in _MARKS:
                at = raw.find(mark.encode())
                while at >= 0:
                    ids[at] = QUOTED
                    at = raw.find(mark.encode(), at + 1)
        return ids


def _content(message: Mapping[str, object]) -> str:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("the simulator reads text only")
    return "".join(str(text) for text in texts)


def piece(token_id: int) -> str:
    """The text of a word's token, or of the quoted mark's."""
    if token_id == QUOTED:
        return "<"
    if token_id < FOLLOWING:
        return WORDS[token_id - OPENING]
    return f" {WORDS[token_id - FOLLOWING]}"


def voice(prompt_ids: Sequence[int], seed: int | None) -> int:
    """What decides a reply's words: the same prompt and seed always say the same."""
    return zlib.crc32(repr((tuple(prompt_ids), seed)).encode())


def word(voice: int, position: int) -> int:
    """The token at a position of a reply."""
    mixed = (voice * _SPREAD + (position + 1) * _STEP) % 2**64
    mixed = (mixed ^ (mixed >> 31)) * _MIX % 2**64
    return (FOLLOWING if position else OPENING) + (mixed >> 33) % len(WORDS)


def words(voice: int, first: int, end: int) -> list[int]:
    """The tokens of a reply from one position to before another."""
    if end - first < _FEW:
        return [word(voice, position) for position in range(first, end)]
    import numpy as np

    start = np.uint64((voice * _SPREAD + (first + 1) * _STEP) % 2**64)
    mixed = np.arange(end - first, dtype=np.uint64)
    mixed *= np.uint64(_STEP)
    mixed += start
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(_MIX)
    mixed >>= np.uint64(33)
    mixed %= np.uint64(len(WORDS))
    mixed += np.uint64(FOLLOWING)
    found: list[int] = mixed.tolist()
    if not first:
        found[0] -= FOLLOWING - OPENING
    return found


def stand_in_voice(prompt_ids: Sequence[int], seed: int | None) -> int:
    return hash((prompt_ids, seed)) & _STAND_IN_VOICES


def stand_ins(voice: int, first: int, end: int) -> list[int]:
    """Numbers in place of words that nobody reads: equal for the same reply, and for no other."""
    start = (voice << 20) + first
    return list(range(start, start + end - first))
