"""openai-agents, over the Responses API, which is its default, and over chat completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
)
from pydantic import BaseModel

from clients.endpoint import ENDS, KEY, PATIENCE_S, Endpoint

MODELS = {"responses": OpenAIResponsesModel, "chat": OpenAIChatCompletionsModel}
WORDS = ModelSettings(max_tokens=16, extra_body=ENDS)
FORCED = ModelSettings(tool_choice="required", max_tokens=96, extra_body=ENDS)
"""The client takes it back once a tool was called, as it does by default. Unbounded,
nonsense counts to thousands of digits, and the next turn has no room."""


class Place(BaseModel):
    kind: Literal["lighthouse", "harbour"]


@pytest.fixture(params=[*MODELS])
def kind(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@asynccontextmanager
async def _model(endpoint: Endpoint, kind: str) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(
        base_url=endpoint.url, api_key=KEY, max_retries=0, timeout=PATIENCE_S
    ) as client:
        yield MODELS[kind](model=endpoint.model, openai_client=client)


def _with_model(endpoint: Endpoint, kind: str, run: Callable[[Any], Awaitable[Any]]) -> Any:
    async def ran() -> Any:
        async with _model(endpoint, kind) as model:
            return await run(model)

    return asyncio.run(ran())


def test_an_agent_answers_in_words(endpoint: Endpoint, kind: str) -> None:
    async def run(model: Any) -> Any:
        agent = Agent(name="a", instructions="Be brief.", model=model, model_settings=WORDS)
        first = await Runner.run(agent, "Tell me a story.")
        return first, await Runner.run(agent, [*first.to_input_list(), _user("And then?")])

    first, second = _with_model(endpoint, kind, run)
    assert first.final_output
    assert second.final_output


def _user(text: str) -> Any:
    return {"role": "user", "content": text}


def test_a_streamed_run(endpoint: Endpoint, kind: str) -> None:
    async def run(model: Any) -> Any:
        ran = Runner.run_streamed(
            Agent(name="a", model=model, model_settings=WORDS), "Tell me a story."
        )
        said = [
            event.data.delta
            async for event in ran.stream_events()
            if event.type == "raw_response_event"
            and event.data.type == "response.output_text.delta"
        ]
        return "".join(said), ran.final_output

    said, final = _with_model(endpoint, kind, run)
    assert said
    assert said == final


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_called_and_words_end_the_turn(
    endpoint: Endpoint, kind: str, streamed: bool
) -> None:
    """Whole: the model is held to a call, the tool runs, its result goes back, words follow."""
    called: list[tuple[int, int]] = []

    @function_tool
    def add(a: int, b: int) -> int:
        """The sum of both."""
        called.append((a, b))
        return a + b

    async def run(model: Any) -> Any:
        agent = Agent(name="a", model=model, tools=[add], model_settings=FORCED)
        if not streamed:
            return await Runner.run(agent, "What is 7 + 5?", max_turns=6)
        ran = Runner.run_streamed(agent, "What is 7 + 5?", max_turns=6)
        async for _ in ran.stream_events():
            pass
        return ran

    done = _with_model(endpoint, kind, run)
    assert called
    assert done.final_output is not None
    kinds = [item.type for item in done.new_items]
    assert kinds.count("tool_call_item") == kinds.count("tool_call_output_item") == len(called)
    assert kinds[-1] == "message_output_item"


def test_a_tools_result_may_be_the_answer(endpoint: Endpoint, kind: str) -> None:
    @function_tool
    def add(a: int, b: int) -> int:
        """The sum of both."""
        return a + b

    async def run(model: Any) -> Any:
        agent = Agent(
            name="a", model=model, tools=[add], model_settings=FORCED,
            tool_use_behavior="stop_on_first_tool",
        )  # fmt: skip
        return await Runner.run(agent, "What is 7 + 5?", max_turns=1)

    assert int(_with_model(endpoint, kind, run).final_output) is not None


def test_an_output_type_keeps_to_the_schema(torch: Endpoint, kind: str) -> None:
    async def run(model: Any) -> Any:
        return await Runner.run(Agent(name="a", model=model, output_type=Place), "Which place?")

    assert isinstance(_with_model(torch, kind, run).final_output, Place)
