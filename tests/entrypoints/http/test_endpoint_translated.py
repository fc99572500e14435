"""vLLM's errors as ours: which field, which code. The bodies are vLLM's own, as it sent them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmserve.core.types import ParamError
from llmserve.entrypoints.http.held_response import ForwardedCall, blamed, translated

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def told(message: str, param: str | None = None, code: int = 400) -> bytes:
    error = {"message": message, "type": "BadRequestError", "param": param, "code": code}
    return json.dumps({"error": error}).encode()


@pytest.mark.parametrize(
    ("path", "fields", "body", "param", "code"),
    [
        (CHAT, {"messages": [1], "n": 2}, told("n must be what it is not"), None, "invalid_value"),
        (CHAT, {"messages": [1]}, told("no such thing", "temperature"), None, "invalid_value"),
        (CHAT, {"messages": [1], "response_format": {"type": "json_object"}},
         told("no grammar", "structured_outputs"), "response_format", "invalid_value"),
        (CHAT, {"messages": [1], "logprobs": True, "top_logprobs": 30},
         told("at most 20", "logprobs"), "top_logprobs", "invalid_value"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "x"}]}]},
         told("wrong", "body.messages.0.Developer.content.list[Part].0.Text.type"),
         "messages[0].content[0].type", "invalid_value"),
        (COMPLETIONS, {"prompt": "a"}, told("Input should be a list", "body.prompt.0"), "prompt",
         "invalid_value"),
        (COMPLETIONS, {"prompt": [5] * 512, "max_tokens": 2},
         told("max_tokens must be at least 1, got 0.", "max_tokens"), "prompt",
         "context_length_exceeded"),
        (CHAT, {"messages": [1]}, told("too long", "input_tokens"), "messages",
         "context_length_exceeded"),
        ("/v1/responses", {"input": "a"},
         told("Input length (9) exceeds model's maximum context length (8)."), "input",
         "context_length_exceeded"),
        (CHAT, {"model": "x"}, told("The model `x` does not exist", code=404), "model",
         "model_not_found"),
    ],
)  # fmt: skip
def test_an_error_names_its_field_where_vllm_says_it(
    path: str, fields: dict[str, Any], body: bytes, param: str | None, code: str
) -> None:
    status = json.loads(body)["error"]["code"]
    error = translated(status, body, ForwardedCall(path, fields, limit=512))
    assert (error.param, error.code) == (param, code)
    if code == "context_length_exceeded":
        assert error.message.startswith("This model's maximum context length is 512 tokens")


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'{"error": 3}', b"oh"])
def test_a_body_that_is_no_error_object_is_told_as_it_is(body: bytes) -> None:
    error = translated(500, body, ForwardedCall(CHAT, {}))
    assert (error.status, error.code) == (500, "internal_error")


def test_a_form_that_cannot_be_is_blamed_on_its_field() -> None:
    call = ForwardedCall(CHAT, {"messages": [], "response_format": {"type": "json_schema"}})
    error = blamed(ParamError("structured_outputs", "no grammar can be made of it"), call)
    assert isinstance(error, ParamError)
    assert error.param == "response_format"
    other = ParamError("prompt", "a regex is in the prompt")
    assert blamed(other, call) is other
