"""Bytes and places of tokens: joined they are the reply, for any text, cut and sent in any way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmserve.core.types import Chunk, TokenLogprob
from llmserve.engines.simulator.vocabulary import QUOTED, VOCABULARY, WordTokenizer
from llmserve.engines.tokenizer import Tokenizer
from llmserve.entrypoints.http.echo import EchoedPrompt
from llmserve.entrypoints.http.logprobs import Placed, PlacedLogprobs, legacy_logprobs
from llmserve.entrypoints.http.token_places import TokenPlace, TokenPlaces
from llmserve.entrypoints.http.token_texts import TokenTexts
from support.examples import examples
from support.token_streams import (
    TEXTS,
    BackendTokenizer,
    bundled,
    chunks,
    joined,
    sentencepiece,
    wordpiece,
)

TOKENIZERS: dict[str, Callable[[], BackendTokenizer]] = {
    "bundled": bundled,
    "stripped": sentencepiece,
    "unstripped": lambda: sentencepiece(strip=False),
}
SETTINGS = settings(max_examples=examples(120), deadline=None)


def streamed(texts: TokenTexts, parts: Sequence[Chunk], *, included: bool = False) -> list[Placed]:
    reply = PlacedLogprobs(texts, included=included)
    found: list[Placed] = []
    for part in parts:
        found += reply.of(part)
    return found


def data(placed: Sequence[Placed]) -> bytes:
    return b"".join(place.data or b"" for place, _ in placed)


def check(placed: Sequence[Placed], text: str, ids: Sequence[int]) -> None:
    """All tokens are there in order, their bytes are the text, and each lies where its bytes do."""
    assert [place.token_id for place, _ in placed] == list(ids)
    assert [token and token.token_id for _, token in placed] == list(ids)
    whole = data(placed)
    assert whole[: len(text.encode())] == text.encode()
    rest = whole[len(text.encode()) :]  # of a last character that never came to its end
    assert rest.decode(errors="ignore") == ""
    assert len(rest) < 4
    before = b""
    for place, _ in placed:
        assert place.offset == len(before.decode(errors="ignore"))
        before += place.data or b""


def cuts(draw: Any, parts: list[Chunk]) -> list[Chunk]:
    """The same chunks, some of them together."""
    found: list[list[Chunk]] = []
    for part in parts:
        if found and draw(st.booleans()):
            found[-1].append(part)
        else:
            found.append([part])
    return [joined(some) for some in found]


@pytest.mark.parametrize("kind", TOKENIZERS)
@SETTINGS
@given(text=TEXTS, draw=st.data())
@example(text="👩‍👩‍👧", draw=None)
def test_joined_bytes_are_the_reply(kind: str, text: str, draw: Any) -> None:
    tokenizer = TOKENIZERS[kind]()
    ids = tokenizer.encode(text)
    sampling: dict[str, Any] = {}
    eos: frozenset[int] = frozenset()
    if draw is not None:
        for _ in range(draw.draw(st.integers(0, 3))):  # never within a character
            ids.append(draw.draw(st.sampled_from(tokenizer.special)))
            ids += tokenizer.encode(draw.draw(TEXTS))
        ids = ids[: draw.draw(st.integers(0, len(ids)))]
        sampling["skip_special_tokens"] = draw.draw(st.booleans())
        sampling["include_stop_str_in_output"] = draw.draw(st.booleans())
        if text and draw.draw(st.booleans()):
            start = draw.draw(st.integers(0, len(text) - 1))
            sampling["stop"] = (text[start : start + draw.draw(st.integers(1, 5))],)
        if ids and draw.draw(st.booleans()):
            sampling["stop_token_ids"] = (draw.draw(st.sampled_from(ids)),)
        if draw.draw(st.booleans()):
            eos = frozenset({tokenizer.special[-1]})
    if not ids:
        return
    prompt = tokenizer.encode("The keeper")
    parts = chunks(tokenizer, ids, prompt=prompt, eos=eos, **sampling)
    reply, included = joined(parts), sampling.get("include_stop_str_in_output", False)
    texts = TokenTexts(tokenizer, special=not sampling.get("skip_special_tokens", True))
    whole = streamed(texts, [reply], included=included)
    check(whole, reply.text, reply.token_ids)
    assert streamed(texts, parts, included=included) == whole
    if draw is not None:
        assert streamed(texts, cuts(draw.draw, parts), included=included) == whole


@pytest.mark.parametrize("kind", TOKENIZERS)
@SETTINGS
@given(draw=st.data())
def test_tokens_that_make_no_text_have_their_bytes_all_the_same(kind: str, draw: Any) -> None:
    """The text has U+FFFD where they are no UTF-8, and whoever joins the bytes sees why."""
    tokenizer = TOKENIZERS[kind]()
    size = tokenizer.backend.get_vocab_size()
    ids = draw.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=12))
    parts = chunks(tokenizer, ids, prompt=tokenizer.encode("The"))
    whole = streamed(TokenTexts(tokenizer), [joined(parts)])
    assert [place.token_id for place, _ in whole] == ids
    assert data(whole) == b"".join(tokenizer.token_bytes(token) or b"" for token in ids)
    pieces = streamed(TokenTexts(tokenizer), parts)
    assert [place.data for place, _ in pieces] == [place.data for place, _ in whole]
    text = joined(parts).text
    assert all(0 <= place.offset <= len(text) for place, _ in whole)
    if kind == "bundled":  # the others' own decoders lose what is beside a wrong byte
        assert pieces == whole
        read = data(whole).decode("utf-8", "replace")
        assert read.rstrip("\ufffd") == text.rstrip("\ufffd")


@pytest.mark.parametrize("kind", [*TOKENIZERS, "simulator"])
@SETTINGS
@given(text=TEXTS, draw=st.data())
def test_an_echoed_prompt_is_its_tokens(kind: str, text: str, draw: Any) -> None:
    tokenizer: Tokenizer = WordTokenizer() if kind == "simulator" else TOKENIZERS[kind]()
    ids = tuple(tokenizer.encode(text))
    logprobs = (None, *(TokenLogprob(token, -1.0) for token in ids[1:]))[: len(ids)]
    echoed = EchoedPrompt(TokenTexts(tokenizer), ids, text)
    if kind in ("bundled", "simulator") or tokenizer.decode(ids) == text:
        assert echoed.text == text
    placed = echoed.placed(logprobs)
    assert data(placed) == echoed.text.encode()
    assert [place.token_id for place, _ in placed] == list(ids)


def test_a_prompt_that_the_tokenizer_changes_is_echoed_as_it_was_read() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import normalizers

    made = Backend.from_str(bundled().backend.to_str())
    made.normalizer = normalizers.NFC()
    tokenizer = BackendTokenizer(made)
    ids = tuple(tokenizer.encode("cafe\u0301"))
    echoed = EchoedPrompt(TokenTexts(tokenizer), ids, "cafe\u0301")
    assert echoed.text == "caf\u00e9"
    assert data(echoed.placed((None,) * len(ids))) == "caf\u00e9".encode()


def test_words_of_pieces_lose_the_spaces_that_their_decoder_takes() -> None:
    tokenizer = wordpiece()
    ids = tokenizer.encode("the keeper lit a lamp, the lamps.")
    places = TokenPlaces(TokenTexts(tokenizer))
    text = tokenizer.decode(ids)
    placed = places.push(text, ids) + places.end(cut=False, silent=False)
    assert places.exact
    assert b"".join(place.data or b"" for place in placed).decode() == text
    words = [text[one.offset :][: len((one.data or b"").decode())] for one in placed]
    assert words == ["the", " keep", "er", " lit", " a", " lamp", ",", " the", " lamp", "s", "."]


def test_half_a_character_reads_as_its_bytes_and_special_tokens_by_name() -> None:
    tokenizer = sentencepiece()
    texts = TokenTexts(tokenizer)
    assert texts[tokenizer.backend.token_to_id("<0xE2>")] == r"bytes:\xe2"
    assert texts[tokenizer.backend.token_to_id("▁The")] == " The"
    assert (texts[tokenizer.special[0]], texts.data(tokenizer.special[0])) == ("<s>", None)
    shown = texts.of_kind(special=True, as_ids=False)
    assert shown.data(tokenizer.special[0]) == b"<s>"
    assert texts.of_kind(special=False, as_ids=True)[7] == "token_id:7"
    assert texts[tokenizer.backend.get_vocab_size() + 5].startswith("token_id:")


def test_two_tokens_of_one_text_keep_their_own_values() -> None:
    tokenizer = sentencepiece()
    byte, letter = (tokenizer.backend.token_to_id(piece) for piece in ("<0x74>", "t"))
    texts = TokenTexts(tokenizer)
    assert texts[byte] == texts[letter] == "t"
    token = TokenLogprob(letter, -2.0, ((byte, -1.0), (letter, -2.0)))
    told = legacy_logprobs([(TokenPlace(letter, 0, b"t"), token)], texts, 2)
    assert told["top_logprobs"] == [{f"token_id:{byte}": -1.0, "t": -2.0}]


def test_the_simulators_tokens_are_their_bytes() -> None:
    tokenizer = WordTokenizer()
    assert [tokenizer.token_bytes(i) for i in (0xE2, 256, QUOTED - 1, QUOTED)] == [
        b"\xe2", b"a", b" yellow", b"<",
    ]  # fmt: skip
    assert tokenizer.token_bytes(VOCABULARY) == b""
    texts = TokenTexts(tokenizer)
    assert texts[0xE2] == r"bytes:\xe2"
