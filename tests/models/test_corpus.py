"""The corpus is the same for everybody, and what the evaluation asks is not in it."""

import random
import re
from itertools import islice

import pytest

from llmserve.models.training import evaluate
from llmserve.models.training.corpus import Document, documents
from llmserve.models.training.words import HELD_NOUNS, LEFT, NOUNS, RIGHT, Nouns, held_sum, made_up

SUM = re.compile(r"\b(\d+) ?(?:\+|and|plus) ?(\d+)\b")
GAINS = re.compile(r"has (\d+) apples and gets (\d+) more")


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return list(documents(11, 6000))


def text_of(document: Document) -> str:
    return "\n".join(text for _, text in document.turns)


def words_of(document: Document) -> set[str]:
    return set(re.findall(r"[a-z]+", text_of(document).lower()))


def sums_of(document: Document) -> list[tuple[int, int]]:
    found = SUM.findall(text_of(document)) + GAINS.findall(text_of(document))
    return [(int(a), int(b)) for a, b in found]


def test_same_seed_same_documents(corpus: list[Document]) -> None:
    assert list(documents(11, 300)) == corpus[:300]
    assert list(documents(12, 300)) != corpus[:300]


def test_held_nouns_are_in_no_document(corpus: list[Document]) -> None:
    assert set(NOUNS) > HELD_NOUNS
    assert not [d for d in corpus if words_of(d) & HELD_NOUNS]


def test_nouns_of_the_two_sides_never_meet(corpus: list[Document]) -> None:
    seen = [(words_of(d) & LEFT, words_of(d) & RIGHT) for d in corpus]
    assert not [pair for pair in seen if all(pair)]
    assert {noun for left, right in seen for noun in left | right} == LEFT | RIGHT


def test_held_sums_are_in_no_document(corpus: list[Document]) -> None:
    sums = [pair for document in corpus for pair in sums_of(document)]
    assert len(sums) > 5000
    assert not [pair for pair in sums if held_sum(*pair)]


def test_sums_of_the_corpus_are_right(corpus: list[Document]) -> None:
    claims = [c for d in corpus for c in re.findall(r"(\d+) \+ (\d+) = (\d+)", text_of(d))]
    assert len(claims) > 5000
    assert not [claim for claim in claims if int(claim[0]) + int(claim[1]) != int(claim[2])]


def test_a_third_of_sums_is_held_in_both_orders() -> None:
    held = {(a, b) for a in range(100) for b in range(100) if held_sum(a, b)}
    assert 3000 < len(held) < 3600
    assert all((b, a) in held for a, b in held)
    assert not [pair for pair in held if max(pair) < 10]


def test_stories_name_what_the_prompt_names(corpus: list[Document]) -> None:
    """A model cannot learn to follow prompts that the corpus itself ignores."""
    known = set(NOUNS)
    kinds = ("story", "long_story")
    for document in (d for d in corpus if d.kind in kinds):
        prompt, answer = (set(re.findall(r"[a-z]+", t.lower())) for _, t in document.turns[-2:])
        assert (prompt & known) <= answer, document


def test_no_template_is_left_unfilled(corpus: list[Document]) -> None:
    assert not [d for d in corpus if re.search(r"[{}|]|\ba [aeio]\w+|\ban [^aeiouh\W]", text_of(d))]


def test_some_documents_are_long_and_some_are_plain(corpus: list[Document]) -> None:
    assert max(len(text_of(d)) for d in corpus) > 3000
    assert 0.1 < sum(d.kind == "plain" for d in corpus) / len(corpus) < 0.2


def test_a_document_uses_a_noun_once_and_one_side_only() -> None:
    for seed in range(50):
        nouns = Nouns(random.Random(seed))
        picked = [nouns.pick(list(LEFT), list(RIGHT), list(NOUNS)) for _ in range(20)]
        assert len(set(picked)) == 20
        assert not (set(picked) & LEFT and set(picked) & RIGHT)


def test_made_up_words_are_mostly_new() -> None:
    rng = random.Random(3)
    words = [made_up(rng) for _ in range(500)]
    assert len(set(words)) > 480
    assert not set(words) & HELD_NOUNS


@pytest.mark.parametrize("task", ["addition below 100, pairs never seen"])
def test_evaluation_asks_held_sums_only(task: str) -> None:
    make, _ = evaluate.TASKS[task]
    rng = random.Random(5)
    for question in (make(rng) for _ in range(100)):
        (pair,) = ((int(a), int(b)) for a, b in islice(SUM.findall(question.prompt), 2))
        assert held_sum(*pair)


def test_an_answer_with_the_wrong_word_is_wrong() -> None:
    question = evaluate.Question("", ("the fox is red",))
    assert question.answered("The fox is red.")
    assert not question.answered("The fox is reddish.")
    assert not question.answered("The owl is red.")
