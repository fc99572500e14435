"""What is learned of a document, and that packing loses and mixes nothing."""

import random

import pytest
from tokenizers import Tokenizer

from llmserve.models.training.batches import END_ID, ROW_TOKENS, encode, group, steps
from llmserve.models.training.corpus import Document, documents
from llmserve.models.training.export import CONTEXT, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [text for d in documents(2, 300) for _, text in d.turns]
    return train_tokenizer(texts, size=400)


def test_only_the_answers_of_a_chat_are_learned(tokenizer: Tokenizer) -> None:
    chat = Document("x", (("system", "Sun."), ("user", "Sea?"), ("assistant", "Sky.")))
    ((tokens, wanted),) = encode(tokenizer, [chat])
    learned = [token for token in wanted if token >= 0]
    assert tokenizer.decode(learned) == "Sky."
    assert learned[-1] == END_ID
    assert len(tokens) == len(wanted)


def test_a_plain_document_is_learned_whole(tokenizer: Tokenizer) -> None:
    ((tokens, wanted),) = encode(tokenizer, [Document("plain", (("text", "Once upon a time."),))])
    assert tokens[1:] == wanted[:-1]
    assert wanted[-1] == END_ID


def test_training_reads_what_the_chat_template_writes(tokenizer: Tokenizer) -> None:
    """One tokenization for both, or the served prompt is not the trained one."""
    chat = Document("x", (("user", "What is 17 + 25?"), ("assistant", '"17 + 25" = 42.')))
    ((tokens, _),) = encode(tokenizer, [chat])
    whole = (
        "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n"
        '<|im_start|>assistant\n"17 + 25" = 42.<|im_end|>\n'
    )
    assert tokens == tokenizer.encode(whole).ids[:-1]


def test_each_digit_is_a_token(tokenizer: Tokenizer) -> None:
    assert [t for t in tokenizer.encode("1234 56").tokens if t.isdigit()] == list("123456")


def test_grouping_keeps_every_document_once_and_whole(tokenizer: Tokenizer) -> None:
    samples = encode(tokenizer, list(documents(4, 300)))
    batches = group(samples, random.Random(0))
    rows = [row for b in batches for row in zip(b.tokens, b.wanted, strict=True)]
    assert len(rows) == len(samples)
    for batch in batches:
        assert batch.tokens.shape[0] == 1 or batch.tokens.numel() <= ROW_TOKENS + 8 * len(
            batch.tokens
        )
    packed = sorted(tuple(wanted[wanted >= 0].tolist()) for _, wanted in rows)
    assert packed == sorted(tuple(t for t in wanted if t >= 0) for _, wanted in samples)


def test_no_row_is_longer_than_the_context(tokenizer: Tokenizer) -> None:
    story = " ".join(["A very long story."] * 1000)
    ((tokens, wanted),) = encode(tokenizer, [Document("plain", (("text", story),))])
    assert len(tokens) == len(wanted) == CONTEXT


def test_a_resumed_run_sees_other_documents(tokenizer: Tokenizer) -> None:
    first, again, later = (next(steps(tokenizer, 1, skip)) for skip in (0, 0, 5))
    assert all(a.tokens.equal(b.tokens) for a, b in zip(first, again, strict=True))
    assert not any(a.tokens.equal(b.tokens) for a, b in zip(first, later, strict=False))
