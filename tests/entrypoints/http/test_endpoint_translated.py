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
        (CHAT, {"messages": None}, told("'NoneType' object is not iterable"), "messages",
         "invalid_value"),
        (COMPLETIONS, {"prompt": []}, told("You must pass at least one prompt"), "prompt",
         "invalid_value"),
        (CHAT, {"messages": [1], "structured_outputs": {}},
         told("You can only use one kind of constraints for structured outputs"),
         "structured_outputs", "invalid_value"),
        (CHAT, {"messages": [1], "max_tokens": 2, "min_tokens": 3},
         told("min_tokens must be less than or equal to max_tokens=2, got 3."), "min_tokens",
         "invalid_value"),
        (CHAT, {"messages": [1], "n": 2}, told("Something else is amiss"), None, "invalid_value"),
        (CHAT, {"max_tokens": 9999},
         told("max_tokens=9999 cannot be greater than max_model_len=512.", "max_tokens"),
         "messages", "context_length_exceeded"),
        (COMPLETIONS, {"prompt": [5] * 512, "max_tokens": 2},
         told("max_tokens must be at least 1, got 0.", "max_tokens"), "prompt",
         "context_length_exceeded"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 0},
         told("max_tokens must be at least 1, got 0.", "max_tokens"), "max_tokens",
         "invalid_value"),
        (COMPLETIONS, {"prompt": "a"}, told("Input should be a list", "body.prompt.0"), "prompt",
         "invalid_value"),
    ],
)  # fmt: skip
def test_an_error_names_its_field(
    path: str, fields: dict[str, Any], body: bytes, param: str | None, code: str
) -> None:
    error = translated(400, body, ForwardedCall(path, fields, limit=512))
    assert (error.param, error.code) == (param, code)


def test_a_prompt_that_leaves_no_room_is_told_the_limit() -> None:
    body = told("max_tokens must be at least 1, got 0.", "max_tokens")
    error = translated(400, body, ForwardedCall(COMPLETIONS, {"prompt": [5] * 512}, limit=512))
    assert "512 tokens" in error.message


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'{"error": 3}', b"oh"])
def test_a_body_that_is_no_error_object_is_told_as_it_is(body: bytes) -> None:
    error = translated(500, body, ForwardedCall(CHAT, {}))
    assert (error.status, error.code) == (500, "internal_error")


def test_a_form_that_cannot_be_is_blamed_on_its_field() -> None:
    call = ForwardedCall(CHAT, {"messages": [], "response_format": {"type": "json_schema"}})
    error = blamed(ParamError("prompt", "Failed to transform regex into a grammar"), call)
    assert isinstance(error, ParamError)
    assert error.param == "response_format"
    other = ParamError("prompt", "too long")
    assert blamed(other, call) is other
