"""Bodies that ask for a reply of a given form."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from llmserve.core.types import Structured
from llmserve.entrypoints.http import protocol
from llmserve.entrypoints.http.errors import ApiError
from llmserve.entrypoints.http.protocol import ChatBody
from llmserve.entrypoints.http.structured import check_supported, structured
from support.scripted import ScriptedEngine
from support.serving import Serving

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
AS_TEXT = json.dumps(SCHEMA, separators=(",", ":"))
ASKING: list[tuple[dict[str, Any], Structured | None]] = [
    ({}, None),
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, Structured("json", '{"type":"object"}')),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        Structured("json", AS_TEXT),
    ),
    ({"structured_outputs": {"json": SCHEMA, "regex": None}}, Structured("json", AS_TEXT)),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, Structured("json", AS_TEXT)),
    ({"structured_outputs": {"json_object": True}}, Structured("json", '{"type":"object"}')),
    ({"structured_outputs": {"regex": "a+"}}, Structured("regex", "a+")),
    ({"structured_outputs": {"choice": ["a", "b"]}}, Structured("choice", '["a","b"]')),
    ({"guided_json": SCHEMA}, Structured("json", AS_TEXT)),
    ({"guided_regex": "a+"}, Structured("regex", "a+")),
    ({"guided_choice": ["a"]}, Structured("choice", '["a"]')),
    ({"guided_grammar": 'start: "a"'}, Structured("grammar", 'start: "a"')),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, Structured("grammar", 'start: "a"')),
]


def body_of(fields: dict[str, Any]) -> ChatBody:
    raw = {"messages": [{"role": "user", "content": "hi"}], **fields}
    return protocol.decode(json.dumps(raw).encode(), ChatBody)


class ConstrainingEngine(ScriptedEngine):
    async def check_form(self, form: Structured) -> None:
        """Whatever it is."""


@pytest.mark.parametrize(("fields", "form"), ASKING)
def test_every_way_to_ask_is_understood(fields: dict[str, Any], form: Structured | None) -> None:
    body = body_of(fields)
    assert structured(body) == form
    assert protocol.sampling(body, 5).structured_outputs == form
    check_supported(body, ConstrainingEngine(["x"]))


@pytest.mark.parametrize("fields", [fields for fields, form in ASKING if form])
def test_an_engine_that_cannot_refuses_by_the_fields_name(fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        check_supported(body_of(fields), ScriptedEngine(["x"]))
    assert refused.value.param == next(iter(fields))
    assert refused.value.code == "unsupported_parameter"


def test_tools_are_refused_where_nothing_holds_their_calls_to_a_form() -> None:
    with pytest.raises(ApiError) as refused:
        check_supported(body_of({}), ScriptedEngine(["x"]), tools=True)
    assert refused.value.param == "tools"


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_schema_is_closed_unless_the_caller_says_otherwise(strict: bool | None) -> None:
    asked = {"schema": SCHEMA} if strict is None else {"schema": SCHEMA, "strict": strict}
    form = structured(body_of({"response_format": {"type": "json_schema", "json_schema": asked}}))
    assert form == Structured("json", AS_TEXT, strict is not False)


def test_two_forms_at_once_are_refused() -> None:
    body = body_of({"guided_regex": "a", "response_format": {"type": "json_object"}})
    with pytest.raises(ApiError, match="one schema"):
        structured(body)


def test_sampling_extras_arrive() -> None:
    fields = {"min_p": 0.2, "min_tokens": 2, "logit_bias": {"7": -3.5, "8": 1}}
    sampling = protocol.sampling(body_of(fields), 5)
    assert (sampling.min_p, sampling.min_tokens) == (0.2, 2)
    assert sampling.logit_bias == ((7, -3.5), (8, 1.0))


@pytest.mark.parametrize("server", ["torch", "simulator"], indirect=True)
@pytest.mark.parametrize("form", [form for form, meant in ASKING if meant], ids=json.dumps)
def test_every_way_to_ask_is_taken_by_a_server(
    http: httpx.Client, server: Serving, form: dict[str, Any]
) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 40, **form}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
