"""Which fields an application of vLLM's reads, by its request classes."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pydantic
from typing_extensions import TypedDict

from llmserve.engines.vllm.api_fields import fields_of_routes


class Part(TypedDict, total=False):
    type: str
    text: str


class Spoken(TypedDict, total=False):
    role: str
    content: str | list[Part]


class Called(TypedDict, total=False):
    role: str
    tool_calls: list[dict[str, Part]]
    refusal: str


@dataclasses.dataclass
class Wanted:
    regex: str | None = None
    _backend: str | None = None


class Schema(pydantic.BaseModel):
    of: dict[str, Any] | None = pydantic.Field(default=None, alias="schema")


class Asked(pydantic.BaseModel):
    messages: list[Spoken | Called]
    wanted: Wanted | None = None
    form: Schema | str | None = None
    temperature: float | None = None


class AskedOtherwise(pydantic.BaseModel):
    prompt: str


async def handler(request: Asked | AskedOtherwise, raw_request: Any) -> None: ...


async def models() -> None: ...


def test_fields_are_those_of_the_classes_of_the_body_and_of_what_they_hold() -> None:
    routes = [
        SimpleNamespace(path="/chat", endpoint=handler),
        SimpleNamespace(path="/models", endpoint=models),
        SimpleNamespace(path="/elsewhere", endpoint=handler),
    ]
    found = fields_of_routes(SimpleNamespace(routes=routes), {"/chat": "POST", "/models": "GET"})
    assert found == {
        "/chat": {
            "messages": {
                "role": None,
                "content": {"type": None, "text": None},
                "tool_calls": None,  # a mapping holds what names it likes
            },
            "wanted": {"regex": None},
            "form": {"schema": None},
            "temperature": None,
            "prompt": None,
        }
    }
