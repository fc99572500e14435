"""LiteLLM's proxy, a process of its own between the client and the endpoint."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from clients.endpoint import KEY, PATIENCE_S, Endpoint, child
from clients.tools import MESSAGES, TOO_LONG, TOOLS, check_call

MASTER = "sk-" + "4f1c90de" * 8
NAMES = ["torch", "simulator"]


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def proxy(
    started: Callable[[str], Endpoint], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    models = []
    for name in NAMES:
        endpoint = started(name)
        params = {"model": f"openai/{endpoint.model}", "api_base": endpoint.url, "api_key": KEY}
        models.append({"model_name": name, "litellm_params": params})
    config: Path = tmp_path_factory.mktemp("proxy") / "config.yaml"
    config.write_text(json.dumps({"model_list": models}))  # what is JSON is YAML
    port = str(_free_port())
    command = [str(Path(sys.executable).parent / "litellm"), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", port]
    with child(command, LITELLM_MASTER_KEY=MASTER) as running:
        running.line_with("Uvicorn running on")
        with openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key=MASTER, max_retries=0,
            timeout=PATIENCE_S,
        ) as client:  # fmt: skip
            yield client


@pytest.mark.parametrize("name", NAMES)
def test_a_chat_whole_and_streamed(proxy: openai.OpenAI, name: str) -> None:
    done = proxy.chat.completions.create(model=name, messages=MESSAGES, max_tokens=8)
    assert done.choices[0].message.content
    chunks = proxy.chat.completions.create(model=name, messages=MESSAGES, max_tokens=8, stream=True)
    # to the end: where one is left halfway the collector closes it, and may hold its pool's lock
    said = [chunk.choices[0].delta.content for chunk in list(chunks) if chunk.choices]
    assert any(said)


@pytest.mark.parametrize("name", NAMES)
def test_a_forced_call(proxy: openai.OpenAI, name: str) -> None:
    done = proxy.chat.completions.create(
        model=name, messages=MESSAGES, tools=TOOLS, tool_choice="required"
    )
    calls = done.choices[0].message.tool_calls
    assert calls
    for call in calls:
        assert call.type == "function"
        check_call(call.function.name, call.function.arguments)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_context_is_400_through_the_proxy(proxy: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        proxy.chat.completions.create(model=name, messages=TOO_LONG)
    assert "ContextWindowExceededError" in refused.value.message


@pytest.mark.parametrize("name", NAMES)
def test_a_response(proxy: openai.OpenAI, name: str) -> None:
    done = proxy.responses.create(model=name, input="Tell me a story.", max_output_tokens=16)
    assert done.output_text
