"""The openai package: what everybody else stands on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from clients.endpoint import ENDS, KEY, PATIENCE_S, Endpoint
from clients.tools import MESSAGES, TOO_LONG, TOOLS, check_call, named


class Place(BaseModel):
    kind: Literal["lighthouse", "harbour"]
    height: int = Field(ge=1, le=99)


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    with _client(endpoint) as made:
        yield made


@pytest.fixture
def of_torch(torch: Endpoint) -> Iterator[openai.OpenAI]:
    with _client(torch) as made:
        yield made


def _client(endpoint: Endpoint) -> openai.OpenAI:
    """Without retries: what fails once has failed."""
    return openai.OpenAI(
        base_url=endpoint.url, api_key=KEY, max_retries=0, timeout=PATIENCE_S
    )  # fmt: skip


def _model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_models_are_listed_and_one_is_retrieved(client: openai.OpenAI) -> None:
    (one,) = client.models.list().data
    assert client.models.retrieve(one.id) == one


def test_a_chat(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model=_model(client), messages=MESSAGES, max_tokens=8)
    (choice,) = done.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert done.usage is not None
    assert done.usage.completion_tokens == 8
    assert done.usage.total_tokens == done.usage.prompt_tokens + 8


def test_a_streamed_chat_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": _model(client), "messages": MESSAGES, "max_tokens": 12}
    asked |= {"temperature": 0, "seed": 3}
    whole = client.chat.completions.create(**asked)
    pieces, usage = [], None
    for chunk in client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        pieces += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    assert "".join(pieces) == whole.choices[0].message.content
    assert usage is not None
    assert usage.completion_tokens == 12


def test_the_stream_helper_ends_with_the_whole(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=_model(client), messages=MESSAGES, max_tokens=8
    ) as stream:
        said = "".join(event.delta for event in stream if event.type == "content.delta")
        with pytest.raises(openai.LengthFinishReasonError) as ended:  # its word for a length
            stream.get_final_completion()
    assert ended.value.completion.choices[0].message.content == said
    assert said


def test_a_raw_answer_has_an_id_of_its_own(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": _model(client), "messages": MESSAGES, "max_tokens": 1}
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    assert first.id != second.id
    assert first.system_fingerprint


def test_ids_are_unique_across_servers(torch: Endpoint, simulator: Endpoint) -> None:
    ids = []
    for endpoint in (torch, simulator):
        with _client(endpoint) as client:
            done = client.chat.completions.create(
                model=endpoint.model, messages=MESSAGES, max_tokens=1
            )
            ids.append(done.id)
    assert ids[0] != ids[1]


def test_async_chats_at_once(endpoint: Endpoint) -> None:
    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=endpoint.url, api_key=KEY, max_retries=0) as client:
            asked: Any = {"model": endpoint.model, "messages": MESSAGES, "max_tokens": 6}
            return await asyncio.gather(
                *(client.chat.completions.create(**asked) for _ in range(6))
            )  # fmt: skip

    for done in asyncio.run(ask()):
        assert done.usage.completion_tokens == 6


# tools


@pytest.mark.parametrize("choice", ["required", named("get_weather"), named("add")])
def test_a_forced_call_keeps_to_its_schema(client: openai.OpenAI, choice: Any) -> None:
    done = client.chat.completions.create(
        model=_model(client), messages=MESSAGES, tools=TOOLS, tool_choice=choice
    )
    (answer,) = done.choices
    assert answer.message.tool_calls
    for call in answer.message.tool_calls:
        assert call.type == "function"
        check_call(call.function.name, call.function.arguments)
        if choice != "required":
            assert call.function.name == choice["function"]["name"]
    assert answer.finish_reason in ("tool_calls", "stop")
    if choice == "required":
        assert answer.finish_reason == "tool_calls"


@pytest.mark.parametrize("choice", ["required", named("get_weather")])
def test_a_streamed_call_comes_in_pieces_that_join(client: openai.OpenAI, choice: Any) -> None:
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    ids: dict[int, str] = {}
    ended = None
    for chunk in client.chat.completions.create(
        model=_model(client), messages=MESSAGES, tools=TOOLS, tool_choice=choice, stream=True
    ):
        for one in chunk.choices:
            ended = one.finish_reason or ended
            for piece in one.delta.tool_calls or []:
                assert piece.function is not None
                if piece.id:
                    ids[piece.index] = piece.id
                if piece.function.name:
                    assert piece.index not in names, "a name comes once and whole"
                    names[piece.index] = piece.function.name
                at = arguments.get(piece.index, "")
                arguments[piece.index] = at + (piece.function.arguments or "")
    assert names.keys() == arguments.keys() == ids.keys()
    assert sorted(names) == list(range(len(names)))
    assert names
    for index, name in names.items():
        check_call(name, arguments[index])
    assert ended in ("tool_calls", "stop")


def test_the_stream_helper_puts_a_call_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=_model(client), messages=MESSAGES, tools=TOOLS, tool_choice="required"
    ) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert calls
    check_call(calls[0].function.name, calls[0].function.arguments)


@pytest.mark.parametrize("parallel", [True, False])
def test_auto_answers_in_words_or_in_calls(client: openai.OpenAI, parallel: bool) -> None:
    done = client.chat.completions.create(
        model=_model(client), messages=MESSAGES, tools=TOOLS, tool_choice="auto",
        parallel_tool_calls=parallel, max_tokens=64,
    )  # fmt: skip
    (answer,) = done.choices
    if answer.finish_reason == "tool_calls":
        assert answer.message.tool_calls
        for call in answer.message.tool_calls:
            assert call.type == "function"
            check_call(call.function.name, call.function.arguments)
        assert parallel or len(answer.message.tool_calls) == 1
    else:
        assert answer.message.content is not None
        assert not answer.message.tool_calls


def test_none_answers_in_words(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model=_model(client), messages=MESSAGES, tools=TOOLS, tool_choice="none", max_tokens=8
    )
    assert done.choices[0].message.content
    assert not done.choices[0].message.tool_calls


def test_a_turn_goes_on_from_its_calls(client: openai.OpenAI) -> None:
    """The reply goes back as the client's own object has it: null content beside its calls."""
    asked: dict[str, Any] = {"model": _model(client), "tools": TOOLS}
    first = client.chat.completions.create(
        **asked, messages=MESSAGES, tool_choice="required", max_tokens=96
    )
    reply = first.choices[0].message
    assert reply.tool_calls
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
        for call in reply.tool_calls
    ]
    history = [*MESSAGES, reply, *results]
    done = client.chat.completions.create(
        **asked, messages=history, tool_choice="none", max_tokens=8
    )
    assert done.choices[0].message.content


def test_pydantic_function_tools_are_parsed(client: openai.OpenAI) -> None:
    done = client.chat.completions.parse(
        model=_model(client), messages=MESSAGES, tool_choice="required",
        tools=[openai.pydantic_function_tool(Place)],
    )  # fmt: skip
    calls = done.choices[0].message.tool_calls
    assert calls
    assert isinstance(calls[0].function.parsed_arguments, Place)


# replies of a given form


def test_a_reply_is_parsed_into_a_model(of_torch: openai.OpenAI) -> None:
    done = of_torch.chat.completions.parse(
        model=_model(of_torch), messages=MESSAGES, response_format=Place
    )
    assert isinstance(done.choices[0].message.parsed, Place)


def test_a_streamed_reply_is_parsed_into_a_model(of_torch: openai.OpenAI) -> None:
    with of_torch.chat.completions.stream(
        model=_model(of_torch), messages=MESSAGES, response_format=Place
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Place)


def test_a_schema_that_refers_to_itself_is_the_clients_mistake_or_works(
    of_torch: openai.OpenAI,
) -> None:
    schema = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    format_: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as refused:
        of_torch.chat.completions.create(
            model=_model(of_torch), messages=MESSAGES, response_format=format_, max_tokens=16
        )
    assert refused.value.param == "response_format"


# completions


@pytest.mark.parametrize("prompt", ["Once upon a time", ["One", "Once upon a time"], [5, 6, 7]])
def test_a_completion(client: openai.OpenAI, prompt: Any) -> None:
    done = client.completions.create(model=_model(client), prompt=prompt, max_tokens=4)
    assert len(done.choices) == (2 if prompt[0] == "One" else 1)
    assert all(choice.text for choice in done.choices)


@pytest.mark.parametrize("more", [0, 1])
def test_echo_gives_the_prompt_back_with_its_logprobs(of_torch: openai.OpenAI, more: int) -> None:
    prompts = ["Once upon a time", "The fox was called"]
    done = of_torch.completions.create(
        model=_model(of_torch), prompt=prompts, max_tokens=more, echo=True, logprobs=1,
        temperature=0,
    )  # fmt: skip
    assert [choice.index for choice in done.choices] == [0, 1]
    assert done.usage is not None
    assert done.usage.completion_tokens == more * len(prompts)
    for prompt, choice in zip(prompts, done.choices, strict=True):
        assert choice.text.startswith(prompt)
        told = choice.logprobs
        assert told is not None
        assert told.tokens is not None
        assert told.token_logprobs is not None
        assert told.text_offset is not None
        assert told.top_logprobs is not None
        assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset)
        assert told.token_logprobs[0] is None, "nothing stands before the first"
        assert all(value <= 0 for value in told.token_logprobs[1:])
        assert "".join(told.tokens) == choice.text
        for token, at in zip(told.tokens, told.text_offset, strict=True):
            assert choice.text[at:].startswith(token)


# what there is not, and what is too much


def test_embeddings_are_there_or_refused_with_a_reason(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": _model(client), "input": ["a", "b"]}
    try:
        made = client.embeddings.create(**asked, encoding_format="float")
    except openai.BadRequestError as refused:
        assert "embedding" in refused.message  # noqa: PT017
    else:
        assert [one.index for one in made.data] == [0, 1]
        assert len(made.data[0].embedding) == len(made.data[1].embedding) > 0


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_a_prompt_is_the_clients_mistake(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=_model(client), messages=TOO_LONG, stream=stream)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "messages"
    assert "maximum context length is" in refused.value.message


def test_a_field_that_nobody_knows_is_refused_by_name(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": _model(client), "messages": MESSAGES, "max_tokens": 1}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asked, extra_body={"temprature": 2})
    assert refused.value.param == "temprature"


def test_what_does_not_change_a_reply_is_taken(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model=_model(client), messages=MESSAGES, max_tokens=2, user="u-1", metadata={"a": "b"},
        store=False, logprobs=False, top_logprobs=0,
    )  # fmt: skip
    assert done.choices[0].message.content


def test_a_wrong_key_is_an_authentication_error(endpoint: Endpoint) -> None:
    with (
        openai.OpenAI(base_url=endpoint.url, api_key="sk-wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


# the Responses API


def test_a_response(client: openai.OpenAI) -> None:
    done = client.responses.create(
        model=_model(client), input="Tell me a story.", max_output_tokens=16
    )
    assert done.object == "response"
    assert done.status == "incomplete"
    assert done.incomplete_details is not None
    assert done.incomplete_details.reason == "max_output_tokens"
    assert done.output_text
    assert done.usage is not None
    assert done.usage.output_tokens == 16


def test_a_streamed_response_ends_with_the_whole(client: openai.OpenAI) -> None:
    kinds, said, whole = [], "", None
    events = client.responses.create(
        model=_model(client), instructions="Be brief.", stream=True, max_output_tokens=16,
        input=[{"role": "user", "content": "Tell me a story."}],
    )  # fmt: skip
    for at, event in enumerate(events):
        kinds.append(event.type)
        assert event.sequence_number == at
        if event.type == "response.output_text.delta":
            said += event.delta
        if event.type in ("response.completed", "response.incomplete"):
            whole = event.response
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert whole is not None
    assert whole.output_text == said


def test_the_responses_helper_ends_with_the_whole(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model=_model(client), input="Tell me a story.", max_output_tokens=16, extra_body=ENDS
    ) as stream:
        assert stream.get_final_response().output_text


def test_a_responses_call_and_its_result_go_back_as_items(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "get_weather", "strict": None}
    tool["parameters"] = TOOLS[0]["function"]["parameters"]
    asked: dict[str, Any] = {"model": _model(client), "tools": [tool]}
    first = client.responses.create(
        **asked, input="The weather?", tool_choice="required", max_output_tokens=96
    )
    calls = [item for item in first.output if item.type == "function_call"]
    assert calls
    for call in calls:
        check_call(call.name, call.arguments)
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}
        for call in calls
    ]
    history: Any = [{"role": "user", "content": "The weather?"}, *first.output, *results]
    done = client.responses.create(**asked, input=history, tool_choice="none", max_output_tokens=16)
    assert done.output_text


def test_a_response_is_parsed_into_a_model(of_torch: openai.OpenAI) -> None:
    done = of_torch.responses.parse(model=_model(of_torch), input="Which place?", text_format=Place)
    assert isinstance(done.output_parsed, Place)


def test_nothing_is_stored_and_that_is_said(client: openai.OpenAI) -> None:
    done = client.responses.create(
        model=_model(client), input="Hello.", max_output_tokens=16, store=False
    )
    assert done.to_dict()["store"] is False
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
        client.responses.create(
            model=_model(client), input="And then?", previous_response_id=done.id
        )
    assert json.dumps(refused.value.body)
