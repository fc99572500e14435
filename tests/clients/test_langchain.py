"""langchain-openai's ChatOpenAI, as its documentation has it."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

from clients.endpoint import KEY, PATIENCE_S, Endpoint
from clients.tools import TOO_LONG, check_call


class Place(BaseModel):
    """Where it is."""

    kind: Literal["lighthouse", "harbour"]
    height: int = Field(ge=1, le=99)


@tool
def add(a: int, b: int) -> int:
    """The sum of both."""
    return a + b


def _chat(endpoint: Endpoint, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=endpoint.model, base_url=endpoint.url, api_key=KEY, max_retries=0,
        timeout=PATIENCE_S, **more,
    )  # fmt: skip


def test_invoke(endpoint: Endpoint) -> None:
    said = _chat(endpoint, max_tokens=8).invoke("Tell me a story.")
    assert said.content
    assert said.usage_metadata["output_tokens"] == 8
    assert said.response_metadata["finish_reason"] == "length"


def test_stream(endpoint: Endpoint) -> None:
    pieces = list(_chat(endpoint, max_tokens=8, stream_usage=True).stream("Tell me a story."))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert whole.content
    assert whole.usage_metadata["output_tokens"] == 8


def test_a_chain_and_a_batch(endpoint: Endpoint) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{what}")])
    chain = prompt | _chat(endpoint, max_tokens=4)
    said = asyncio.run(chain.abatch([{"what": "A fox"}, {"what": "A lighthouse"}]))
    assert all(one.content for one in said)


def test_completions(endpoint: Endpoint) -> None:
    model = OpenAI(
        model=endpoint.model, base_url=endpoint.url, api_key=KEY, max_retries=0, max_tokens=4
    )
    assert model.invoke("Once upon a time")


@pytest.mark.parametrize("choice", ["any", "add"])
def test_bound_tools_are_called_and_answered(endpoint: Endpoint, choice: str) -> None:
    chat = _chat(endpoint, max_tokens=96)  # nonsense counts to thousands of digits
    asked: list[Any] = [HumanMessage("What is 7 + 5?")]
    said = chat.bind_tools([add], tool_choice=choice).invoke(asked)
    assert said.tool_calls
    assert not said.invalid_tool_calls
    results = []
    for call in said.tool_calls:
        check_call(call["name"], call["args"])
        results.append(ToolMessage(str(add.invoke(call["args"])), tool_call_id=call["id"]))
    done = chat.bind_tools([add], tool_choice="none").bind(max_tokens=8)
    assert done.invoke([*asked, said, *results]).content


def test_a_bound_tool_streams(endpoint: Endpoint) -> None:
    pieces = list(_chat(endpoint).bind_tools([add], tool_choice="any").stream("What is 7 + 5?"))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    for call in whole.tool_calls:
        check_call(call["name"], call["args"])
    assert whole.tool_calls


def test_bound_tools_by_default_answer_somehow(endpoint: Endpoint) -> None:
    said = _chat(endpoint, max_tokens=64).bind_tools([add]).invoke("What is 7 + 5?")
    assert said.content or said.tool_calls or said.invalid_tool_calls


def test_structured_output_in_its_default_mode(torch: Endpoint) -> None:
    made = _chat(torch).with_structured_output(Place).invoke("Which place?")
    assert isinstance(made, Place)


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output_by_method(torch: Endpoint, method: str) -> None:
    made = _chat(torch).with_structured_output(Place, method=method).invoke("Which place?")
    assert isinstance(made, Place)


def test_structured_output_by_a_call_needs_no_constraint_on_the_reply(simulator: Endpoint) -> None:
    chat = _chat(simulator).with_structured_output(Place, method="function_calling")
    assert isinstance(chat.invoke("Which place?"), Place)


def test_through_the_responses_api(endpoint: Endpoint) -> None:
    said = _chat(endpoint, use_responses_api=True, max_tokens=16).invoke("Tell me a story.")
    assert said.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_context_is_known_as_one(endpoint: Endpoint, stream: bool) -> None:
    chat = _chat(endpoint)
    with pytest.raises(ContextOverflowError):
        list(chat.stream(TOO_LONG)) if stream else chat.invoke(TOO_LONG)
