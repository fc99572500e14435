"""POST /v1/chat/completions through the official client."""

from __future__ import annotations

import asyncio

import openai
from openai.types.chat import ChatCompletionChunk

from support.serving import MESSAGES, Serving


def test_whole_answer_has_text_and_exact_usage(client: openai.OpenAI, server: Serving) -> None:
    answer = client.chat.completions.create(
        model=server.model, messages=MESSAGES, max_completion_tokens=9, temperature=0,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    prompt = server.service.engine.tokenizer.chat(MESSAGES)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == 9
    assert answer.usage.total_tokens == len(prompt) + 9
    assert answer.usage.prompt_tokens_details is not None
    assert answer.model == server.model


def stream(client: openai.OpenAI, model: str, **options: object) -> list[ChatCompletionChunk]:
    body: dict[str, object] = {"temperature": 0, "max_tokens": 12, **options}
    return list(
        client.chat.completions.create(
            model=model,
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=body,
        )
    )


def text(chunks: list[ChatCompletionChunk], choice: int = 0) -> str:
    return "".join(
        c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == choice
    )


def test_stream_says_what_the_whole_answer_says(client: openai.OpenAI, server: Serving) -> None:
    whole = client.chat.completions.create(
        model=server.model, messages=MESSAGES, max_tokens=12, temperature=0
    )
    chunks = stream(client, server.model)
    assert text(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert reasons == [whole.choices[0].finish_reason]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_streamed_usage_comes_last_and_alone(client: openai.OpenAI, server: Serving) -> None:
    chunks = stream(client, server.model, ignore_eos=True)
    *before, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in before)


def test_n_choices_each_stream_to_their_end(client: openai.OpenAI, server: Serving) -> None:
    chunks = stream(client, server.model, n=3, temperature=1.0, seed=5, ignore_eos=True)
    assert all(text(chunks, choice) for choice in range(3))
    ended = [c.index for chunk in chunks for c in chunk.choices if c.finish_reason == "length"]
    assert sorted(ended) == [0, 1, 2]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 36


def test_n_choices_of_one_seed_differ(client: openai.OpenAI, server: Serving) -> None:
    answer = client.chat.completions.create(
        model=server.model, messages=MESSAGES, n=3, seed=7, max_tokens=24, temperature=1.5
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert answer.usage is not None
    prompt = server.service.engine.tokenizer.chat(MESSAGES)
    assert answer.usage.prompt_tokens == len(prompt), "a prompt counts once for all choices"


def test_the_same_seed_says_the_same_again(client: openai.OpenAI, server: Serving) -> None:
    first, second = (
        client.chat.completions.create(
            model=server.model, messages=MESSAGES, seed=11, temperature=1.0, max_tokens=16
        )
        for _ in range(2)
    )
    assert first.choices[0].message.content == second.choices[0].message.content


def test_stop_string_ends_the_reply_and_is_not_in_it(
    client: openai.OpenAI, server: Serving
) -> None:
    told = text(stream(client, server.model, max_tokens=24))
    stop = told[len(told) // 2 :][:3]
    chunks = stream(client, server.model, max_tokens=24, stop=[stop])
    assert text(chunks) == told[: told.index(stop)]
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_logprobs_cover_every_token_of_the_reply(client: openai.OpenAI, server: Serving) -> None:
    answer = client.chat.completions.create(
        model=server.model, messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True,
        top_logprobs=3, extra_body={"ignore_eos": True},
    )  # fmt: skip
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 6
    assert "".join(token.token for token in logprobs.content) == answer.choices[0].message.content
    for token in logprobs.content:
        assert token.logprob <= 0
        assert bytes(token.bytes or []).decode() == token.token
        assert len(token.top_logprobs) <= 3
        assert all(other.logprob <= token.logprob for other in token.top_logprobs[1:])


def test_streamed_logprobs_are_those_of_the_whole_answer(
    client: openai.OpenAI, server: Serving
) -> None:
    chunks = stream(client, server.model, max_tokens=6, logprobs=True, ignore_eos=True)
    tokens = [
        token.token
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs is not None
        for token in choice.logprobs.content or []
    ]
    assert len(tokens) == 6
    assert "".join(tokens) == text(chunks)


def test_text_parts_are_read_as_text(client: openai.OpenAI, server: Serving) -> None:
    content = MESSAGES[0]["content"]
    answer = client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": [{"type": "text", "text": content}]}],
        max_tokens=4,
    )
    assert answer.usage is not None
    prompt = server.service.engine.tokenizer.chat(MESSAGES)
    assert answer.usage.prompt_tokens == len(prompt)


def test_two_clients_at_once_each_get_their_own_reply(server: Serving) -> None:
    async def ask(topic: str) -> str:
        async with server.async_client() as client:
            pieces = await client.chat.completions.create(
                model=server.model, messages=[{"role": "user", "content": f"Name a {topic}."}],
                temperature=0, max_tokens=12, stream=True,
            )  # fmt: skip
            return "".join(
                [p.choices[0].delta.content or "" async for p in pieces if p.choices]
            )

    async def both() -> tuple[list[str], list[str]]:
        together = await asyncio.gather(ask("fish"), ask("garden"))
        return list(together), [await ask("fish"), await ask("garden")]

    together, apart = asyncio.run(both())
    assert together == apart


def test_priority_and_tenant_travel_in_the_body_or_in_headers(
    client: openai.OpenAI, server: Serving
) -> None:
    client.chat.completions.create(
        model=server.model, messages=MESSAGES, max_tokens=1,
        extra_body={"priority": -3, "tenant": "blue"}, extra_headers={"X-Tenant": "red"},
    )  # fmt: skip
    client.chat.completions.create(
        model=server.model, messages=MESSAGES, max_tokens=1,
        extra_headers={"X-Priority": "4", "X-Tenant": "green"},
    )  # fmt: skip
    body, headers = server.telemetry.requests.rows()[-2:]
    assert (body.priority, body.tenant) == (-3, "blue"), "the body goes before a header"
    assert (headers.priority, headers.tenant) == (4, "green")
