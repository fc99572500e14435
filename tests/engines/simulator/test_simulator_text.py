"""The simulator's words: the same for the same request, and cut where the request says."""

from __future__ import annotations

import asyncio
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.engines.simulator.vocabulary import VOCABULARY, WordTokenizer
from llmserve.engines.stop_strings import StopStrings
from llmserve.engines.tokenizer import ChatOptions
from support.simulation import Received, Simulation


def ask(prompt: str = "tell me", **sampling: object) -> Received:
    got = Received()

    async def test(sim: Simulation) -> None:
        await sim.ask("a", prompt, received=got, **sampling)

    Simulation().run(test)
    return got


def test_a_reply_is_words_and_its_ids_decode_to_its_text() -> None:
    got = ask(max_tokens=40)
    assert re.fullmatch(r"[a-z]+( [a-z]+){39}", got.text)
    assert WordTokenizer().decode(got.token_ids) == got.text
    assert got.last.finish_reason == "length"
    assert [chunk.finish_reason for chunk in got.chunks[:-1]] == [None] * 39


def test_prompt_and_seed_decide_the_words_whatever_was_in_the_batch() -> None:
    alone = ask("hello", seed=3, max_tokens=20)
    crowd: list[Received] = []

    async def test(sim: Simulation) -> None:
        crowd.extend(
            await asyncio.gather(
                *[
                    sim.ask(str(i), "hello", seed=i % 4, max_tokens=20, temperature=i / 9)
                    for i in range(8)
                ]
            )
        )

    Simulation(kv_capacity_tokens=64).run(test)
    texts = [one.text for one in crowd]
    assert texts[3] == texts[7] == alone.text
    assert len(set(texts)) == 4
    assert ask("hello!", seed=3, max_tokens=20).text != alone.text


def test_a_stop_string_across_words_ends_the_text_before_it() -> None:
    words = ask(max_tokens=30).text.split()
    stop = f"{words[8][-1]} {words[9][:2]}"
    whole = ask(max_tokens=30)
    got = ask(max_tokens=30, stop=(stop,))
    assert got.text == whole.text[: whole.text.index(stop)]
    assert (got.last.finish_reason, got.last.stop_reason) == ("stop", stop)
    assert got.token_ids == whole.token_ids[: len(got.token_ids)]


def test_what_looked_like_a_stop_string_and_was_none_still_arrives() -> None:
    text = ask(max_tokens=10).text
    got = ask(max_tokens=10, stop=(f"{text.split()[-1]} never",))
    assert got.text == text
    assert got.last.finish_reason == "length"


def test_a_stop_token_ends_the_reply_and_is_not_in_its_text() -> None:
    whole = ask(max_tokens=30)
    stop = whole.token_ids[5]
    got = ask(max_tokens=30, stop_token_ids=(stop,))
    assert got.token_ids == whole.token_ids[:6]
    assert got.text == WordTokenizer().decode(whole.token_ids[:5])
    assert (got.last.finish_reason, got.last.stop_reason) == ("stop", stop)


def test_a_reply_that_reaches_the_models_length_ends_there() -> None:
    got = Received()

    async def test(sim: Simulation) -> None:
        await sim.ask("a", "12345", max_tokens=1000, received=got)

    Simulation(max_model_len=20).run(test)
    assert len(got.token_ids) == 15
    assert got.last.finish_reason == "length"


def test_logprobs_say_that_every_word_was_certain() -> None:
    got = ask(max_tokens=2, logprobs=3)
    first = got.chunks[0].logprobs
    assert first is not None
    assert (first[0].token_id, first[0].logprob) == (got.token_ids[0], 0.0)
    assert first[0].top == ((got.token_ids[0], 0.0),)
    assert ask(max_tokens=1).last.logprobs is None


@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = WordTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.encode())


@given(st.lists(st.integers(0, VOCABULARY - 1)))
def test_any_ids_of_the_vocabulary_decode(ids: list[int]) -> None:
    assert isinstance(WordTokenizer().decode(ids), str)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="within"):
        WordTokenizer().decode([VOCABULARY])


def test_a_conversation_becomes_chatml_with_the_assistant_to_speak() -> None:
    tokenizer = WordTokenizer()
    ids = tokenizer.chat(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        ]
    )
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    with pytest.raises(ValueError, match="text only"):
        tokenizer.chat([{"role": "user", "content": [{"type": "image_url"}]}])


@given(
    text=st.text("ab ", max_size=30),
    stops=st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30)),
)
def test_how_a_text_is_cut_changes_nothing_about_where_it_stops(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    def through(pieces: list[str]) -> tuple[str, str | None]:
        watch, out = StopStrings(stops), ""
        for piece in pieces:
            certain, stop = watch.push(piece)
            out += certain
            assert not any(one in out for one in stops)
            if stop is not None:
                return out, stop
        return out + watch.rest(), None

    edges = sorted({0, len(text), *[cut for cut in cuts if cut < len(text)]})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    got, stop = through(pieces)
    assert (got, stop) == through([text]) == through(list(text))
    if stop is None:
        assert got == text
        assert not any(one in text for one in stops)
    else:
        assert text.startswith(got + stop)


@given(
    st.lists(
        st.one_of(st.sampled_from(["<|im_start|>", "<|im_end|>", "<|", "im_end|>"]), st.text())
    )
)
def test_no_text_of_a_message_ends_its_turn(parts: list[str]) -> None:
    tokenizer, text = WordTokenizer(), "".join(parts)
    ids = tokenizer.chat([{"role": "user", "content": text}])
    mark = tokenizer.encode("<|im_end|>")
    ends = sum(ids[at : at + len(mark)] == mark for at in range(len(ids)))
    assert ends == 1
    assert f"user\n{text}<|im_end|>" in tokenizer.decode(ids)
    allowed = tokenizer.chat(
        [{"role": "user", "content": text}], ChatOptions(allow_special_tokens=True)
    )
    assert allowed == tokenizer.encode(tokenizer.decode(ids))


def test_a_message_that_is_continued_stays_open() -> None:
    tokenizer = WordTokenizer()
    chat = [{"role": "assistant", "content": "Once"}]
    ids = tokenizer.chat(
        chat, ChatOptions(add_generation_prompt=False, continue_final_message=True)
    )
    assert tokenizer.decode(ids) == "<|im_start|>assistant\nOnce"
    with pytest.raises(ValueError, match="exclude each other"):
        tokenizer.chat(chat, ChatOptions(continue_final_message=True))
