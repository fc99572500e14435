"""Streams of text: whole characters only, and joined they are what the tokenizer decodes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from llmserve.engines.token_bytes import byte_characters
from llmserve.engines.torch.text.detokenize import (
    REPLACEMENT,
    ByteStream,
    Detokenizer,
    TextStream,
    WindowStream,
)
from support.tiny_models import VOCAB

TEXTS = [
    "The keeper lit the lamp.",
    "zażółć gęślą jaźń",
    "漢字かな交じり文 and ASCII",
    "👩‍👩‍👧 family, 🏳️‍🌈 flag, 🙂",
    "tabs\tand\nnew lines\r\n  spaces ",
    "\ufffd said the author",
]


@pytest.fixture(scope="module")
def byte_level(llama: Path) -> Any:
    return Tokenizer.from_file(str(llama / "tokenizer.json"))


@pytest.fixture(scope="module")
def sentencepiece() -> Any:
    """As Llama 2's: ▁ for a space, bytes for what the vocabulary lacks, first space dropped."""
    words = ["▁The", "▁keeper", "▁lit", "▁", ".", "▁a", "é", "t"]
    vocab = [("<unk>", 0.0), *((f"<0x{i:02X}>", 0.0) for i in range(256))]
    vocab += [(word, -1.0) for word in words]
    vocab += [(chr(c), -5.0) for c in range(97, 123) if chr(c) not in words]
    made = Tokenizer(models.Unigram(vocab, 0, byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(["<s>", "</s>"])
    return made


def pieces(stream: TextStream, ids: list[int]) -> list[str]:
    return [stream.push(token) for token in ids]


def test_the_byte_alphabet_is_that_of_the_tokenizers_library() -> None:
    from tokenizers import pre_tokenizers

    assert set(byte_characters()) == set(pre_tokenizers.ByteLevel.alphabet())
    shown, _ = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("é\n ")[0]
    assert shown.startswith("".join(byte_characters()[byte] for byte in "é".encode()))


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_pieces_join_to_the_text(byte_level: Any, text: str) -> None:
    stream = Detokenizer(byte_level).open([])
    assert isinstance(stream, ByteStream)
    assert "".join(pieces(stream, byte_level.encode(text).ids)) == text


@pytest.mark.parametrize("text", TEXTS[:5])
def test_no_piece_ends_within_a_character(byte_level: Any, text: str) -> None:
    ids = byte_level.encode(text).ids
    assert any(len(text[:i].encode()) % 2 for i in range(9))
    for make in (Detokenizer(byte_level).open, lambda p: WindowStream(byte_level.decode, p)):
        for piece in pieces(make([]), ids):
            assert REPLACEMENT not in piece


def test_a_character_that_was_cut_off_is_left_out(byte_level: Any) -> None:
    ids = byte_level.encode("ab🦊").ids[:-1]
    for stream in (Detokenizer(byte_level).open([]), WindowStream(byte_level.decode)):
        assert "".join(pieces(stream, ids)) == "ab"


def test_bytes_that_are_no_text_come_out_as_the_tokenizer_decodes_them(byte_level: Any) -> None:
    dice = random.Random(0)
    for _ in range(200):
        ids = [dice.randrange(VOCAB) for _ in range(20)]
        told = "".join(pieces(Detokenizer(byte_level).open([]), ids))
        expected = byte_level.decode(ids, skip_special_tokens=True)
        # alike up to what an unfinished last character leaves
        assert expected.rstrip(REPLACEMENT) == told.rstrip(REPLACEMENT)
        assert len(expected) - len(told) in (0, 1)


def test_special_tokens_have_no_text(byte_level: Any) -> None:
    ids = [1, *byte_level.encode("so").ids, 2]
    assert "".join(pieces(Detokenizer(byte_level).open([]), ids)) == "so"


@pytest.mark.parametrize("text", ["The keeper lit a lamp", "a 漢字 in the tt", "🦊🦊 é"])
def test_sentencepiece_pieces_continue_the_prompt(sentencepiece: Any, text: str) -> None:
    every = sentencepiece.encode(f"The keeper {text}").ids
    for cut in (0, 1, 2):
        prompt, reply = every[:cut], every[cut:]
        stream = Detokenizer(sentencepiece).open(prompt)
        assert isinstance(stream, WindowStream)
        told = pieces(stream, reply)
        assert sentencepiece.decode(prompt) + "".join(told) == sentencepiece.decode(every)
        assert not any(REPLACEMENT in piece for piece in told)


def test_text_comes_as_soon_as_it_is_certain(byte_level: Any) -> None:
    ids = byte_level.encode("zażółć").ids
    for stream in (Detokenizer(byte_level).open([]), WindowStream(byte_level.decode)):
        got = ""
        for count, token in enumerate(ids, 1):
            got += stream.push(token)
            assert got == byte_level.decode(ids[:count]).rstrip(REPLACEMENT)
