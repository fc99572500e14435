"""The simulator's language: bytes going in, plain English words coming out.

Token ids 0 to 255 are the bytes of UTF-8, so every text can be a prompt and counts one token per
byte. The ids above are whole words, once to open a reply and once with a space in front.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

from llmserve.core.validation import wholes

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
VOCABULARY = FOLLOWING + len(WORDS)

_SPREAD, _STEP, _MIX = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_STAND_IN_VOICES = 2**42 - 1
_FEW = 12
"""Fewer words are quicker one by one."""


class WordTokenizer:
    """Satisfies `engines.Tokenizer`. `decode(encode(text)) == text` for all valid Unicode."""

    tokens_per_word = 4
    """Of plain English, at least: so a prompt of so many tokens takes few words."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are no UTF-8 become the replacement character."""
        ids = wholes("a token id", ids, 0, VOCABULARY - 1)
        raw = b"".join(
            bytes((one,)) if one < OPENING else piece(one).encode("ascii") for one in ids
        )
        return raw.decode("utf-8", "replace")

    def chat(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        """ChatML, with the assistant's turn opened."""
        turns = [f"<|im_start|>{m.get('role')}\n{_content(m)}<|im_end|>\n" for m in messages]
        return self.encode("".join(turns) + "<|im_start|>assistant\n")


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
    """The text of a word's token."""
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
