"""POST /v1/completions, tokenize and detokenize."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import httpx
import openai
import pytest

from support.serving import MESSAGES, Serving, serving


def test_prompt_as_text_and_as_its_tokens_say_the_same(
    client: openai.OpenAI, server: Serving
) -> None:
    ids = list(server.service.engine.tokenizer.encode("Once upon a time"))
    text, tokens = (
        client.completions.create(model=server.model, prompt=prompt, temperature=0, max_tokens=8)
        for prompt in ("Once upon a time", ids)
    )
    assert text.choices[0].text == tokens.choices[0].text
    assert text.usage is not None
    assert text.usage.prompt_tokens == len(ids)


def test_each_of_several_prompts_gets_its_choices_in_order(
    client: openai.OpenAI, server: Serving
) -> None:
    prompts = ["Once upon a time", "The sea was"]
    ids = [list(server.service.engine.tokenizer.encode(prompt)) for prompt in prompts]
    apart = [
        client.completions.create(model=server.model, prompt=p, temperature=0, max_tokens=5)
        for p in prompts
    ]
    for batch in (prompts, ids):
        answer = client.completions.create(
            model=server.model, prompt=batch, temperature=0, max_tokens=5, n=2
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        texts = [choice.text for choice in answer.choices]
        first, second = (a.choices[0].text for a in apart)
        assert texts == [first, first, second, second]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(map(len, ids))


def test_sixteen_tokens_when_none_are_asked_for(client: openai.OpenAI, server: Serving) -> None:
    answer = client.completions.create(
        model=server.model, prompt="The sea", extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_stream_says_what_the_whole_answer_says(client: openai.OpenAI, server: Serving) -> None:
    options = {"temperature": 0, "max_tokens": 10}
    whole = client.completions.create(model=server.model, prompt="The sea", extra_body=options)
    chunks = list(
        client.completions.create(
            model=server.model, prompt="The sea", stream=True, extra_body=options,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage or server.info.engine != "simulator"
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.parametrize("streamed", [False, True])
def test_legacy_logprobs_point_into_the_text(
    client: openai.OpenAI, server: Serving, streamed: bool
) -> None:
    options = {"temperature": 0, "max_tokens": 6, "logprobs": 2, "ignore_eos": True}
    if streamed:
        chunks = list(
            client.completions.create(
                model=server.model, prompt="The sea", stream=True, extra_body=options
            )
        )
    else:
        chunks = [
            client.completions.create(model=server.model, prompt="The sea", extra_body=options)
        ]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    text = "".join(choice.text for choice in choices)
    told = [choice.logprobs for choice in choices if choice.logprobs is not None]
    tokens = [token for part in told for token in part.tokens or []]
    offsets = [offset for part in told for offset in part.text_offset or []]
    assert len(tokens) == 6
    for token, offset in zip(tokens, offsets, strict=True):
        assert text[offset : offset + len(token)] == token
    for part in told:
        for token, value, top in zip(
            part.tokens or [], part.token_logprobs or [], part.top_logprobs or [], strict=True
        ):
            assert value <= 0
            assert top[token] == value


def test_tokenize_counts_what_a_completion_is_charged(http: httpx.Client, server: Serving) -> None:
    for body in ({"prompt": "The sea was grey."}, {"messages": MESSAGES}):
        told = http.post("/tokenize", json=body).json()
        route = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        answer = http.post(route, json={**body, "max_tokens": 1}).json()
        assert told["count"] == len(told["tokens"]) == answer["usage"]["prompt_tokens"]
        assert told["max_model_len"] == server.info.max_model_len
        assert told["token_strs"] is None


def test_detokenize_undoes_tokenize(http: httpx.Client) -> None:
    text = "The sea was grey, and 12 gulls flew: naïve 東."
    body = {"prompt": text, "return_token_strs": True}
    told = http.post("/tokenize", json=body).json()
    assert len(told["token_strs"]) == told["count"]
    assert http.post("/detokenize", json={"tokens": told["tokens"]}).json() == {"prompt": text}


def test_many_ids_are_made_text_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """On it, millions of them would hold up every stream. (With vLLM the route is vLLM's own.)"""
    where: list[str] = []

    def telling(ids: Sequence[int]) -> str:
        where.append(threading.current_thread().name)
        return decode(ids)

    with serving("simulator") as own, own.http() as http:
        tokenizer = own.service.engine.tokenizer
        decode = tokenizer.decode
        monkeypatch.setattr(tokenizer, "decode", telling)
        for count in (20, 20_000):
            told = http.post("/detokenize", json={"tokens": [5] * count}).json()
            assert told["prompt"] == decode([5] * count)
    assert where[0] == "llmserve" != where[1]
