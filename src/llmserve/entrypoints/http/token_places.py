"""Where each token of a text lies in it, and which of its bytes are the token's.

A text leaves out what stop strings cut and special tokens that are not shown, and a token may be
half a character. So tokens are not lengths to add up: each is looked for where the one before it
ends. A token waits until the text has its characters, as the text itself may be kept back.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from llmserve.entrypoints.http.token_texts import TokenTexts

_REPLACED = "\ufffd"
_AHEAD = 64
"""Characters looked through for a token that is not where it should be."""


class TokenPlace(NamedTuple):
    token_id: int
    offset: int
    """Characters before it; before the character that it is a part of."""
    data: bytes | None
    """What it adds to the text; None where it is special, and not shown."""


class TokenPlaces:
    """Takes tokens and text as they come. Joined, the bytes of all tokens are the text's, and those
    of a last character that never came to its end.

    Where bytes are no UTF-8 the text has U+FFFD, and the tokens have the bytes.
    """

    def __init__(
        self, texts: TokenTexts, *, offset: int = 0, prompt: bool = False, bare: bool = False
    ) -> None:
        """offset: of the first token's first character. prompt: the text may have the names of
        special tokens, which were read as these. bare: it lacks the space of its first token."""
        self._texts = texts
        self._prompt, self._bare = prompt, bare
        self._offset = offset
        self._text = ""  # whose tokens are not placed yet, from `_at` on
        self._at = 0
        self._waiting: list[tuple[int, bytes | None]] = []
        self._first = 0  # of those that wait
        self._missed = False
        self._lossy = False  # a decoder may have taken characters beside bytes that are no UTF-8

    @property
    def exact(self) -> bool:
        """Whether every token was where it should be, and they are all there is."""
        return not self._missed and self._at == len(self._text)

    def push(self, text: str, tokens: Sequence[int]) -> list[TokenPlace]:
        """The tokens that are placed now, in order."""
        self._offset += self._at
        self._text = self._text[self._at :] + text
        del self._waiting[: self._first]
        self._at = self._first = 0
        self._waiting += [(token, self._texts.data(token)) for token in tokens]
        placed: list[TokenPlace] = []
        while self._first < len(self._waiting):
            size, expected = self._group()
            if not size or not self._match(size, expected, placed):
                break
        return placed

    def end(self, *, cut: bool, silent: bool) -> list[TokenPlace]:
        """Those that are left when no more text comes. cut: a stop string took their text away;
        silent: the last token ended the reply, and only its own text was left out."""
        placed: list[TokenPlace] = []
        left = self._text[self._at :].encode()
        waiting = self._waiting[self._first :]
        found = 0
        for number, (token, data) in enumerate(waiting, 1):
            offset = self._offset + self._at + len(left[:found].decode(errors="ignore"))
            if data is not None:
                own = _common(data, left[found:])
                found += own
                self._missed = self._missed or own < len(data)
                if cut or (silent and number == len(waiting)):
                    data = data[:own]
            placed.append(TokenPlace(token, offset, data))
        self._missed = self._missed or found < len(left)
        self._first, self._at = len(self._waiting), len(self._text)
        return placed

    def _group(self) -> tuple[int, str]:
        """How many of those that wait it takes to end with a character, and their text; 0 where
        its last bytes are to come."""
        token, data = self._waiting[self._first]
        if self._bare and data:
            data = data.removeprefix(b" ")
            self._waiting[self._first], self._bare = (token, data), False
        if not data:
            name = self._texts.name(token)
            if data is None and self._prompt and self._text.startswith(name, self._at):
                self._waiting[self._first] = token, name.encode()
                return 1, name
            return 1, ""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = ""
        for count, (_, own) in enumerate(islice(self._waiting, self._first, None), 1):
            text += decoder.decode(own or b"")
            if own and not decoder.getstate()[0]:
                return count, text
        return 0, ""

    def _match(self, size: int, expected: str, placed: list[TokenPlace]) -> bool:
        """Place the next `size` tokens, whose text this is; False where the text is to come."""
        dropped = False
        self._lossy = self._lossy or _REPLACED in expected
        if self._text.startswith(expected, self._at):
            end = len(expected)
        else:
            there = self._text[self._at : self._at + len(expected)]
            spaced = there and not self._lossy and expected[0] == " " != there[0]
            if spaced and expected.startswith(there[:-1], 1):  # as at the start of a text
                dropped, expected = True, expected[1:]
                there = self._text[self._at : self._at + len(expected)]
            if len(there) < len(expected) and expected.startswith(there):
                return False
            end = len(expected) if there == expected else self._search(expected)
        self._place(size, end, dropped, placed)
        return True

    def _place(self, size: int, end: int, dropped: bool, placed: list[TokenPlace]) -> None:
        """The next `size` tokens take the next `end` characters."""
        before = b""
        for token, own in self._waiting[self._first : self._first + size]:
            if dropped and own:
                own, dropped = own[1:], False
            within = min(end, len(_characters(before))) if before else 0
            placed.append(TokenPlace(token, self._offset + self._at + within, own))
            before += own or b""
        self._first += size
        self._at += end

    def _search(self, expected: str) -> int:
        """The end of what is like it, or of it further on; 0 where it is nowhere near."""
        ahead = self._text[self._at : self._at + len(expected) + _AHEAD]
        if _REPLACED in expected:  # a decoder may make one of each byte, or one of several
            runs = "".join(
                f"{_REPLACED}+" if part.startswith(_REPLACED) else re.escape(part)
                for part in re.split(f"({_REPLACED}+)", expected)
            )
            if (found := re.match(runs, ahead)) is not None:
                return found.end()
        self._missed = self._lossy = True
        at = ahead.find(expected)
        return 0 if at < 0 else at + len(expected)


def _characters(data: bytes) -> str:
    """Whole characters, those that are none replaced."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)


def _common(data: bytes, text: bytes) -> int:
    """How many bytes both begin with."""
    most = min(len(data), len(text))
    return next((n for n in range(most) if data[n] != text[n]), most)
