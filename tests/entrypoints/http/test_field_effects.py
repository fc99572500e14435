"""Every field that is read changes something, and none that is not read is dropped silently."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmserve.entrypoints.http import fields
from llmserve.entrypoints.http.errors import ApiError
from llmserve.entrypoints.http.known_fields import IGNORED, REFUSED
from llmserve.entrypoints.http.route_fields import BODIES, of_route
from support.examples import examples
from support.serving import MESSAGES, Serving

BASE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 2, "temperature": 0.5},
    "/v1/completions": {"prompt": "The sea", "max_tokens": 2, "temperature": 0.5},
    "/v1/responses": {"input": "The sea", "max_output_tokens": 2, "temperature": 0.5},
    "/tokenize": {"prompt": "The sea"},
    "/detokenize": {"tokens": [5, 6]},
}
NO_SENSE: dict[str, Any] = {"chat_template_kwargs": 7, "guided_json": 7}


@pytest.mark.parametrize("server", ["simulator"], indirect=True)
@pytest.mark.parametrize("path", BODIES)
def test_every_field_that_is_read_is_judged(http: httpx.Client, path: str) -> None:
    """A value of no sense is an error that names the field: it was looked at."""
    for name in sorted(of_route(path).read):
        value = NO_SENSE.get(name, {"no": ["sense"]})
        answer = http.post(path, json={**BASE.get(path, {}), name: value})
        assert answer.status_code in (400, 404), (name, answer.text)
        param = str(answer.json()["error"]["param"])
        assert param.partition("[")[0].partition(".")[0] == name, answer.text


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 3}, "sampling.max_tokens"),
    ({"temperature": 0.25}, "sampling.temperature"),
    ({"top_p": 0.5}, "sampling.top_p"),
    ({"top_k": 7}, "sampling.top_k"),
    ({"min_p": 0.1}, "sampling.min_p"),
    ({"min_tokens": 1}, "sampling.min_tokens"),
    ({"seed": 5}, "sampling.seed"),
    ({"stop": ["x"]}, "sampling.stop"),
    ({"stop_token_ids": [3]}, "sampling.stop_token_ids"),
    ({"ignore_eos": True}, "sampling.ignore_eos"),
    ({"presence_penalty": 1.0}, "sampling.presence_penalty"),
    ({"frequency_penalty": 1.0}, "sampling.frequency_penalty"),
    ({"repetition_penalty": 1.5}, "sampling.repetition_penalty"),
    ({"logit_bias": {"3": 1}}, "sampling.logit_bias"),
    ({"n": 2}, "choices"),
    ({"priority": 3}, "priority"),
    ({"tenant": "one"}, "tenant"),
    ({"ttft_slo_ms": 500.0}, "ttft_slo_ms"),
]


def inner(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("server", ["simulator"], indirect=True)
@pytest.mark.parametrize(("more", "where"), CHANGES, ids=[where for _, where in CHANGES])
def test_a_field_that_is_read_reaches_the_request(
    http: httpx.Client, server: Serving, monkeypatch: pytest.MonkeyPatch,
    more: dict[str, Any], where: str,
) -> None:  # fmt: skip
    made: list[Any] = []
    submit = server.service.submit

    def seen(request: Any) -> Any:
        made.append(request)
        return submit(request)

    monkeypatch.setattr(server.service, "submit", seen)
    for path in ("/v1/chat/completions", "/v1/completions"):
        made.clear()
        for body in (BASE[path], {**BASE[path], **more}):
            assert http.post(path, json=body).status_code == 200
        plain, changed = made[0], made[1]
        assert inner(plain, where) != inner(changed, where)


KNOWN = sorted({name for table in (IGNORED, REFUSED) for names in table.values() for name in names})
READ = sorted({name for path in BODIES for name in of_route(path).read})
scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.just(0.5)
values = st.recursive(
    scalars,
    lambda more: st.lists(more, max_size=2)
    | st.dictionaries(st.sampled_from([*READ, "type", "text", "zzz"]), more, max_size=2),
    max_leaves=5,
)
names = st.sampled_from(KNOWN) | st.sampled_from(READ) | st.text(max_size=5)
extras = st.dictionaries(names, values, max_size=3)


@pytest.mark.parametrize("server", ["simulator"], indirect=True)
@settings(
    max_examples=examples(150), deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(path=st.sampled_from([*BODIES]), more=extras)
def test_no_reply_comes_of_a_body_with_a_wish_that_is_not_read(
    http: httpx.Client, path: str, more: dict[str, Any]
) -> None:
    known = of_route(path)
    answer = http.post(path, json={**BASE.get(path, {}), **more})
    assert answer.status_code < 500, answer.text
    if answer.status_code == 200:
        for name, value in more.items():
            assert name in known.read or name in known.ignored or _neutral(name, value, more)
    else:
        error = answer.json()["error"]
        assert error["message"]
        assert error["param"] is not None


WORDS = [
    "type", "role", "content", "text", "name", "function", "arguments", "call_id", "tool_calls",
    "tool_call_id", "output", "summary", "id", "strict", "parameters", "schema", "format",
]  # fmt: skip
KINDS = [
    "message", "user", "assistant", "tool", "function", "function_call", "function_call_output",
    "reasoning", "input_text", "output_text", "json_schema", "object", "auto", "required", "{}",
]  # fmt: skip
deep = st.recursive(
    scalars | st.sampled_from([*WORDS, *KINDS]) | st.just(10**30),
    lambda more: st.lists(more, max_size=3)
    | st.dictionaries(st.sampled_from(WORDS), more, max_size=4),
    max_leaves=8,
)
held = st.dictionaries(st.sampled_from(WORDS[:5]) | st.sampled_from(WORDS), deep, max_size=5)
PLACES = [
    ("/v1/chat/completions", "messages"), ("/v1/chat/completions", "tools"),
    ("/v1/chat/completions", "tool_choice"), ("/v1/chat/completions", "response_format"),
    ("/v1/responses", "input"), ("/v1/responses", "tools"), ("/v1/responses", "tool_choice"),
    ("/v1/responses", "text"), ("/v1/responses", "include"), ("/tokenize", "messages"),
    ("/tokenize", "tools"),
]  # fmt: skip


@pytest.mark.parametrize("server", ["simulator"], indirect=True)
@settings(
    max_examples=examples(400), deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(place=st.sampled_from(PLACES), value=st.lists(held, min_size=1, max_size=2) | held | deep)
def test_no_object_within_a_body_is_a_defect(
    http: httpx.Client, place: tuple[str, str], value: Any
) -> None:
    path, name = place
    body = {**BASE[path], name: value}
    if path == "/tokenize" and name == "messages":
        del body["prompt"]
    answer = http.post(path, json=body)
    assert answer.status_code < 500, (body, answer.text)


def _neutral(name: str, value: Any, more: dict[str, Any]) -> bool:
    if value is None or (name == "best_of" and value == more.get("n")):
        return True
    neutral = [one for table in REFUSED.values() for one in table.get(name, ())]
    return any(type(value) is type(one) and value == one for one in neutral)


@settings(max_examples=examples(300), deadline=None, derandomize=True)
@given(path=st.sampled_from([*BODIES]), more=extras, raw=st.binary(max_size=40))
def test_a_look_at_names_never_fails_otherwise(path: str, more: dict[str, Any], raw: bytes) -> None:
    for body in (json.dumps(more).encode(), raw, b'{"a":' + raw + b"}"):
        for strict in (True, False):
            unknown: list[str] | None = None
            with suppress(ApiError):
                unknown = fields.check(body, of_route(path), strict=strict)
            if unknown is not None:
                assert not (unknown and strict)
                assert isinstance(msgspec.json.decode(body), dict)
