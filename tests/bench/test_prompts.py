from __future__ import annotations

from llmserve.bench.load.prompts import make_prompt
from support.scripted import ByteTokenizer


def test_a_prompt_has_exactly_the_tokens_asked_for() -> None:
    for tokens in (1, 2, 17, 200, 3000):
        assert len(make_prompt(ByteTokenizer(), tokens, salt=5)) == tokens


def test_prompts_differ_from_their_first_tokens_on_so_that_no_prefix_is_shared() -> None:
    tokenizer = ByteTokenizer()
    heads = {make_prompt(tokenizer, 50, salt)[:16] for salt in range(2**40, 2**40 + 200)}
    assert len(heads) == 200


def test_the_same_salt_gives_the_same_prompt() -> None:
    assert make_prompt(ByteTokenizer(), 50, 7) == make_prompt(ByteTokenizer(), 50, 7)
