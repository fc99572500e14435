"""LiteLLM's SDK, whose fallbacks hang on how an error is worded."""

from __future__ import annotations

from typing import Any

import litellm
import pytest

from clients.endpoint import KEY, Endpoint
from clients.tools import MESSAGES, TOO_LONG, TOOLS, check_call


def _at(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "model": f"openai/{endpoint.model}",
        "api_base": endpoint.url,
        "api_key": KEY,
        "num_retries": 0,
    }


def test_a_completion(endpoint: Endpoint) -> None:
    done = litellm.completion(**_at(endpoint), messages=MESSAGES, max_tokens=8)
    assert done.choices[0].message.content
    assert done.choices[0].finish_reason == "length"
    assert done.usage.completion_tokens == 8


def test_a_stream(endpoint: Endpoint) -> None:
    asked: dict[str, Any] = {**_at(endpoint), "messages": MESSAGES, "max_tokens": 8}
    options = {"include_usage": True}
    chunks = list(litellm.completion(**asked, stream=True, stream_options=options))
    assert litellm.stream_chunk_builder(chunks).choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 8


@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call(endpoint: Endpoint, stream: bool) -> None:
    done = litellm.completion(
        **_at(endpoint), messages=MESSAGES, tools=TOOLS, tool_choice="required", stream=stream
    )
    if stream:
        done = litellm.stream_chunk_builder(list(done), messages=MESSAGES)
    (choice,) = done.choices
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls:
        check_call(call.function.name, call.function.arguments)


def test_text_completion(endpoint: Endpoint) -> None:
    at = _at(endpoint) | {"model": f"text-completion-openai/{endpoint.model}"}
    done = litellm.text_completion(**at, prompt="Once upon a time", max_tokens=4)
    assert done.choices[0].text


def test_responses(endpoint: Endpoint) -> None:
    done = litellm.responses(**_at(endpoint), input="Tell me a story.", max_output_tokens=16)
    (message,) = [item for item in done.output if item.type == "message"]
    assert message.content[0].text


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_context_is_known_as_one(endpoint: Endpoint, stream: bool) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**_at(endpoint), messages=TOO_LONG, stream=stream)


def test_the_fallback_for_a_full_context_fires(torch: Endpoint, simulator: Endpoint) -> None:
    """A router sends what does not fit the one model to another, which answers."""
    name = "small"
    short = {"model_name": name, "litellm_params": _at(torch)}
    wide = {"model_name": "wide", "litellm_params": _at(simulator) | {"mock_response": "I hold it"}}
    router = litellm.Router(
        model_list=[short, wide], context_window_fallbacks=[{name: ["wide"]}], num_retries=0
    )
    done = router.completion(model=name, messages=TOO_LONG)
    assert done.choices[0].message.content == "I hold it"


def test_a_client_mistake_is_not_retried_as_the_servers(endpoint: Endpoint) -> None:
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**_at(endpoint), messages=MESSAGES, top_p=7)
