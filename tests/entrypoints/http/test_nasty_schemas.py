"""Schemas that no reply can be kept to, and hard ones: never a 5xx, and the engine goes on."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.examples import examples
from support.serving import MESSAGES, Serving, sent_field

CHAT = "/v1/chat/completions"
NEVER: dict[str, Any] = {
    "circle": {"$ref": "#"},
    "circle in allOf": {"allOf": [{"$ref": "#"}]},
    "two in a circle": {
        "$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    },
    "endless": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "enum of nothing": {"enum": []},
    "anyOf nothing": {"anyOf": []},
    "empty range": {"type": "integer", "minimum": 5, "maximum": 3},
    "against its pattern": {"type": "string", "pattern": "^a$", "minLength": 3},
    "no regex": {"type": "string", "pattern": "(("},
    "no type": {"type": "nonsense"},
    "nowhere": {"$ref": "#/nowhere"},
    "elsewhere": {"$ref": "https://example.org/schema.json"},
}  # fmt: skip
HARD: dict[str, Any] = {
    "exponential pattern": {"type": "string", "pattern": "^(a|b)*a(a|b){20}$"},
    "nested repeats": {"type": "string", "pattern": "^((a+)+b)+$", "maxLength": 30},
    "long": {"type": "string", "minLength": 100_000},
    "many items": {"type": "array", "items": {"type": "integer"}, "minItems": 50_000},
    "many properties": {
        "type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(900)},
    },
    "deep": {
        "$ref": "#/$defs/a0",
        "$defs": {
            f"a{i}": {
                "type": "object",
                "properties": {side: {"$ref": f"#/$defs/a{i + 1}"} for side in ("x", "y")},
                "required": ["x", "y"],
            }
            for i in range(12)
        }
        | {"a12": {"type": "null"}},
    },
}  # fmt: skip


def asked(schema: Any, **more: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    return {"messages": MESSAGES, "response_format": form, "max_tokens": 8, **more}


def check_goes_on(http: httpx.Client) -> None:
    assert http.post(CHAT, json=asked({"enum": ["yes"]})).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", NEVER)
def test_a_schema_that_nothing_fits_is_400_by_its_field(
    http: httpx.Client, name: str, stream: bool
) -> None:
    answer = http.post(CHAT, json=asked(NEVER[name], stream=stream))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "response_format"
    assert " " in error["message"]
    check_goes_on(http)


@pytest.mark.parametrize("name", HARD)
def test_a_hard_schema_is_kept_to_or_refused(
    http: httpx.Client, server: Serving, name: str
) -> None:
    answer = http.post(CHAT, json=asked(HARD[name]))
    assert answer.status_code in (200, 400)
    if answer.status_code == 400:
        assert answer.json()["error"]["param"] == "response_format"
    check_goes_on(http)


@pytest.mark.parametrize("server", ["torch"], indirect=True)
@pytest.mark.parametrize("stream", [False, True])
def test_what_only_the_engine_sees_of_a_form_is_the_requests_fault_too(
    http: httpx.Client, server: Serving, stream: bool
) -> None:
    """A special token's text, which no drawn token has."""
    body = {"messages": MESSAGES, "max_tokens": 30, "stream": stream}
    lost = {**body, "structured_outputs": {"regex": r"<\|im_end\|>a"}}
    answer = http.post(CHAT, json=lost)
    assert answer.status_code == 400 or stream
    assert '"param":"structured_outputs"' in answer.text
    assert '"type":"invalid_request_error"' in answer.text
    check_goes_on(http)


@pytest.mark.parametrize("field", ["structured_outputs", "response_format"])
def test_the_field_that_was_sent_is_named(http: httpx.Client, field: str) -> None:
    body = asked({"enum": []})
    if field == "structured_outputs":
        del body["response_format"]
        body[field] = {"json": {"enum": []}}
    assert http.post(CHAT, json=body).json()["error"]["param"] == field


def is_schema(given: Any) -> bool:
    try:
        jsonschema.Draft202012Validator.check_schema(given)
    except jsonschema.SchemaError:
        return False
    return True


KEYS = st.sampled_from(["a", "b", "c"])
NUMBERS = st.integers(-3, 12)
KINDS = ["string", "integer", "number", "object", "array", "boolean", "null", "odd"]
WORDS = st.sampled_from(KINDS)
PATTERNS = st.sampled_from(["^a", "(", ""])
REFS = st.sampled_from(["#", "#/$defs/a", "#/properties/a", "#/nowhere", "other.json", "%"])
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=4)
SCHEMAS: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.builds(dict) | st.builds(lambda one: {"type": one}, WORDS),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": WORDS | st.lists(WORDS, max_size=2) | SCALARS,
            "properties": st.dictionaries(KEYS, inner, max_size=2),
            "required": st.lists(KEYS, max_size=3),
            "additionalProperties": inner,
            "patternProperties": st.dictionaries(PATTERNS, inner, max_size=1),
            "items": inner | st.lists(inner, max_size=2),
            "prefixItems": st.lists(inner, max_size=2),
            "minItems": NUMBERS, "maxItems": NUMBERS, "minLength": NUMBERS, "maxLength": NUMBERS,
            "minimum": NUMBERS, "exclusiveMaximum": NUMBERS, "multipleOf": NUMBERS,
            "minProperties": NUMBERS,
            "pattern": st.sampled_from(["^a+$", "(", "[a-c]{2,3}", "\\d", "(?=a)"]),
            "format": st.sampled_from(["date", "email", "path", ""]),
            "enum": st.lists(SCALARS, max_size=3), "const": SCALARS,
            "anyOf": st.lists(inner, max_size=2), "allOf": st.lists(inner, max_size=2),
            "oneOf": st.lists(inner, max_size=2), "not": inner,
            "$ref": REFS, "$defs": st.dictionaries(KEYS, inner, max_size=2),
        },
    ),
    max_leaves=6,
)  # fmt: skip


@given(schema=SCHEMAS)
@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_schema_at_all_ends_in_a_5xx(http: httpx.Client, server: Serving, schema: Any) -> None:
    answer = http.post(CHAT, json=asked(schema, max_tokens=48))
    assert answer.status_code in (200, 400), (schema, answer.text)
    if answer.status_code == 400:
        assert sent_field(answer.json()["error"]) == "response_format"
        return
    (choice,) = answer.json()["choices"]
    ours = server.info.engine != "vllm"  # which leaves out keywords that it does not know
    if choice["finish_reason"] == "stop" and ours and is_schema(schema):
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)
