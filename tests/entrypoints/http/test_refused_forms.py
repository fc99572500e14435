"""Forms that no reply can be held to are the request's fault: 400 at the door, with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from llmserve.core.events import Event, Submitted
from llmserve.core.types import ParamError, Structured
from llmserve.serving.requests import collect, next_piece, pieces_of
from support.serving import MESSAGES, PATIENCE_S, Serving

LARGE: dict[str, Any] = {
    "type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(12_000)},
}  # fmt: skip
"""llguidance reads it, and has no room for its grammar."""
FORMS = [
    pytest.param(Structured("json", json.dumps(LARGE)), id="large"),
    pytest.param(Structured("regex", "(("), id="unreadable"),
]
pytestmark = pytest.mark.parametrize("server", ["torch"], indirect=True)


@pytest.fixture
def taken(server: Serving) -> Iterator[list[Event]]:
    """Of requests that got as far as the line."""
    found: list[Event] = []

    def look(event: Event) -> None:
        if isinstance(event, Submitted):
            found.append(event)

    server.bus.attach(look)
    yield found
    server.bus.detach(look)


@pytest.mark.parametrize("form", FORMS)
def test_a_cell_is_told_what_is_wrong_with_a_form(
    server: Serving, taken: list[Event], form: Structured
) -> None:
    """By what `session.generate` and `session.stream` call."""
    asked = server.service, "hi", {"structured_outputs": form}
    with pytest.raises(ParamError, match=r"cannot be kept to: .*(too big|regex)"):
        server.runtime.call(collect(*asked), PATIENCE_S)
    with pytest.raises(ParamError, match="cannot be kept to"):
        server.runtime.call(next_piece(pieces_of(*asked)), PATIENCE_S)
    assert not taken


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_client_gets_400_with_the_reason(
    http: httpx.Client, taken: list[Event], form: Structured, stream: bool
) -> None:
    value: Any = json.loads(form.text) if form.kind == "json" else form.text
    asked = {"structured_outputs": {form.kind: value}, "stream": stream, "n": 3}
    bodies: dict[str, Any] = {
        "chat/completions": {"messages": MESSAGES},
        "completions": {"prompt": "hi"},
    }
    for route, body in bodies.items():
        answer = http.post(f"/v1/{route}", json={**body, **asked})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "structured_outputs"
        assert "cannot be kept to" in error["message"]
    assert not taken


def test_openais_client_sees_a_bad_request(
    client: openai.OpenAI, server: Serving, taken: list[Event]
) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "large", "schema": LARGE}}
    with pytest.raises(openai.BadRequestError, match="too big"):
        client.chat.completions.create(
            model=server.model, messages=MESSAGES, response_format=wanted
        )
    assert not taken
