"""instructor, in its default mode: a call of a tool that is the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import instructor
import openai
import pytest
from instructor.exceptions import InstructorRetryException
from pydantic import BaseModel, Field

from clients.endpoint import KEY, PATIENCE_S, Endpoint
from clients.tools import MESSAGES


class Part(BaseModel):
    name: str = Field(max_length=12)
    count: int = Field(ge=0, le=9)


class Place(BaseModel):
    """Nested, with a choice, a list and something optional: what people ask for."""

    kind: Literal["lighthouse", "harbour"]
    parts: list[Part] = Field(max_length=2)
    note: str | None = Field(None, max_length=12)


@pytest.fixture
def plain(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=endpoint.url, api_key=KEY, max_retries=0, timeout=PATIENCE_S
    ) as made:
        yield made


def _ask(client: Any, model: str, **more: Any) -> Any:
    return client.chat.completions.create(
        model=model, messages=MESSAGES, max_retries=0, response_model=Place, **more
    )


def test_its_default_mode_gives_the_model(plain: openai.OpenAI, endpoint: Endpoint) -> None:
    assert isinstance(_ask(instructor.from_openai(plain), endpoint.model), Place)


def test_its_default_mode_streams_partial_models(plain: openai.OpenAI, endpoint: Endpoint) -> None:
    client = instructor.from_openai(plain)
    partial: Any = client.chat.completions.create_partial(
        model=endpoint.model, messages=MESSAGES, max_retries=0, response_model=Place
    )
    *_, last = partial
    Place.model_validate(last.model_dump())


def test_with_the_raw_completion(plain: openai.OpenAI, endpoint: Endpoint) -> None:
    client = instructor.from_openai(plain)
    made, raw = client.chat.completions.create_with_completion(
        model=endpoint.model, messages=MESSAGES, max_retries=0, response_model=Place
    )
    assert isinstance(made, Place)
    assert raw.choices[0].message.tool_calls


def test_a_schema_holds_the_reply_to_it(torch: Endpoint) -> None:
    with openai.OpenAI(base_url=torch.url, api_key=KEY, max_retries=0) as plain:
        client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
        assert isinstance(_ask(client, torch.model), Place)


def test_a_model_that_only_has_to_write_json_is_its_own_fault(torch: Endpoint) -> None:
    """Its JSON mode tells the schema in words; what comes back is the model's, and no error."""
    with openai.OpenAI(base_url=torch.url, api_key=KEY, max_retries=0) as plain:
        client = instructor.from_openai(plain, mode=instructor.Mode.JSON)
        with pytest.raises(InstructorRetryException) as missed:
            _ask(client, torch.model, max_tokens=128)
    assert missed.value.last_completion.choices[0].message.content
