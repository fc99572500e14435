"""pydantic-ai: an agent with a tool and an output type, in its default mode (a call for each)."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, RunContext, Tool, ToolDefinition, UsageLimits
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from clients.endpoint import KEY, Endpoint

MODELS = {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}
WORDS: Any = {"max_tokens": 16}
CALLS: Any = {"max_tokens": 96}
"""Unbounded, nonsense counts to thousands of digits, and the next turn has no room."""


class Place(BaseModel):
    kind: Literal["lighthouse", "harbour"]
    height: int = Field(ge=1, le=99)


@pytest.fixture(params=[*MODELS])
def model(request: pytest.FixtureRequest, endpoint: Endpoint) -> Any:
    provider = OpenAIProvider(base_url=endpoint.url, api_key=KEY)
    return MODELS[request.param](endpoint.model, provider=provider)


def test_an_agent_answers_in_words(model: Any) -> None:
    done = Agent(model).run_sync("Tell me a story.", model_settings=WORDS)
    assert done.output
    assert done.usage.output_tokens == 16


def test_an_agent_streams_words(model: Any) -> None:
    async def pieces() -> list[str]:
        async with Agent(model).run_stream("Tell me a story.", model_settings=WORDS) as run:
            return [piece async for piece in run.stream_text(delta=True)]

    assert "".join(asyncio.run(pieces()))


def test_an_output_type_comes_as_a_call(model: Any) -> None:
    assert isinstance(Agent(model, output_type=Place).run_sync("Which place?").output, Place)


def test_a_tool_is_called_and_the_output_follows(model: Any) -> None:
    """The tool is offered once, or a model that talks nonsense would call it for ever."""
    called: list[tuple[int, int]] = []

    async def once(ctx: RunContext[None], offered: ToolDefinition) -> ToolDefinition | None:
        return None if called else offered

    def add(a: int, b: int) -> int:
        """The sum of both."""
        called.append((a, b))
        return a + b

    agent = Agent(model, output_type=Place, tools=[Tool(add, prepare=once)], model_settings=CALLS)
    done = agent.run_sync("What is 7 + 5?", usage_limits=UsageLimits(request_limit=3))
    assert isinstance(done.output, Place)
    kinds = [part.part_kind for message in done.all_messages() for part in message.parts]
    assert kinds.count("tool-call") == kinds.count("tool-return")
    again = agent.run_sync(
        "And the next?", message_history=done.all_messages(),
        usage_limits=UsageLimits(request_limit=3),
    )  # fmt: skip
    assert isinstance(again.output, Place)


def test_native_output_keeps_to_the_schema(torch: Endpoint) -> None:
    provider = OpenAIProvider(base_url=torch.url, api_key=KEY)
    agent = Agent(OpenAIChatModel(torch.model, provider=provider), output_type=NativeOutput(Place))
    assert isinstance(agent.run_sync("Which place?").output, Place)


def test_by_name_as_the_documentation_begins(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    agent = Agent(f"openai:{endpoint.model}", output_type=Place)
    assert isinstance(agent.run_sync("Which place?").output, Place)
