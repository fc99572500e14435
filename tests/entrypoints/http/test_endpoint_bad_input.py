"""Bad input is a 4xx with OpenAI's error object: never a 5xx, never a hang."""

from __future__ import annotations

import json
import logging
import re
import socket
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmserve.engines.base import ChecksSchemas
from llmserve.entrypoints.http import asgi
from llmserve.entrypoints.http.asgi import MAX_BODY_BYTES, MAX_VALUES
from support.examples import examples
from support.serving import KEY, MESSAGES, PATIENCE_S, Serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ROUTES = (CHAT, COMPLETIONS, "/tokenize", "/detokenize")


def error_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    return error


NOT_JSON = [
    b"", b"{", b"nonsense", b"{'a': 1}", b"\xff\xfe", b'{"messages": "\\ud800"}', b'"\xff"',
    b'{"messages": [], "temperature": NaN}', b'{"messages": [], "temperature": Infinity}',
    b"[" * 100_000, b'{"a":' * 100_000, b'{"n": 1' + b"0" * 5000 + b"}", b'{"n": 1e999}',
    b"null", b"[]", b"3", b'"text"', b"\x00",
]  # fmt: skip


@pytest.mark.parametrize("raw", NOT_JSON, ids=lambda raw: repr(raw[:24]))
@pytest.mark.parametrize("route", ROUTES)
def test_a_body_that_is_no_json_object_is_400(
    http: httpx.Client, route: str, raw: bytes
) -> None:
    answer = http.post(route, content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error_of(answer)


WRONG_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"content": "no role"}]}, "messages[0].role"),
    ({"messages": [{"role": "narrator", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].image_url",
    ),
    (
        {"messages": [*MESSAGES, {"role": "user", "content": [{"type": "video"}]}]},
        "messages[1].content[0]",
    ),
    ({"messages": [{"role": "user", "content": "a " * 5000}]}, "messages"),
    ({"messages": [{"role": "user", "content": "a" * 2_000_000}]}, "messages"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 2.5}, "max_tokens"),
    ({"max_tokens": "12"}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 10**9}, "messages"),
    ({"max_completion_tokens": -5}, "max_completion_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 10**400}, "messages"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 1e300}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"n": 0}, "n"),
    ({"n": -1}, "n"),
    ({"n": 129}, "n"),
    ({"seed": 2**64}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": [3]}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"stop_token_ids": [2**40]}, "stop_token_ids"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"priority": 2**40}, "priority"),
    ({"tenant": ""}, "tenant"),
    ({"tenant": "x" * 129}, "tenant"),
    ({"tenant": "a\nb"}, "tenant"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "yaml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_regex": ""}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_grammar": "start: A"}, "guided_grammar"),
    ({"echo": True}, "echo"),
    ({"logit_bias": {"3": 101}}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"min_p": 1.5}, "min_p"),
    ({"min_tokens": 3}, "min_tokens"),
]


def names(error: dict[str, Any], param: str) -> bool:
    """Whether it is about the field, or a place in it."""
    said = str(error["param"])
    return said == param or said.startswith((f"{param}[", f"{param}."))


def ids_of(cases: list[tuple[dict[str, Any], str]]) -> list[str]:
    return [json.dumps(case)[:48] for case, _ in cases]


@pytest.mark.parametrize(("change", "param"), WRONG_CHAT, ids=ids_of(WRONG_CHAT))
def test_a_wrong_chat_is_400_and_names_the_field(
    http: httpx.Client, change: dict[str, Any], param: str
) -> None:
    answer = http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 2, **change})
    assert answer.status_code == 400
    assert names(error_of(answer), param)


def test_a_form_is_kept_to_or_refused_by_its_name(http: httpx.Client, server: Serving) -> None:
    wanted = {"regex": "[ab]{3}-[0-9]"}
    body = {"messages": MESSAGES, "max_tokens": 20, "structured_outputs": wanted}
    answer = http.post(CHAT, json=body)
    if isinstance(server.service.engine, ChecksSchemas):
        text = answer.json()["choices"][0]["message"]["content"]
        assert re.fullmatch(wanted["regex"], text)
        wrong = http.post(CHAT, json={**body, "structured_outputs": {"regex": "(("}})
        assert wrong.status_code == 400
        assert error_of(wrong)["param"] == "structured_outputs"
    else:
        assert answer.status_code == 400
        assert error_of(answer)["code"] == "unsupported_parameter"


WRONG_COMPLETION: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", 3]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [[1], "a"]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [2**31]}, "prompt"),
    ({"prompt": [2**70]}, "prompt"),
    ({"prompt": [5] * 5000}, "prompt"),
    ({"prompt": ["a"] * 1025}, "prompt"),
    ({"prompt": ["a"] * 10, "n": 128}, "prompt"),
    ({"max_tokens": 5000}, "prompt"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"echo": 3}, "echo"),
    ({"prompt_logprobs": -2}, "prompt_logprobs"),
    ({"skip_special_tokens": "x"}, "skip_special_tokens"),
    ({"include_stop_str_in_output": "x"}, "include_stop_str_in_output"),
    ({"best_of": 2}, "best_of"),
    ({"suffix": "end"}, "suffix"),
]


@pytest.mark.parametrize(("change", "param"), WRONG_COMPLETION, ids=ids_of(WRONG_COMPLETION))
def test_a_wrong_completion_is_400_and_names_the_field(
    http: httpx.Client, change: dict[str, Any], param: str
) -> None:
    answer = http.post(COMPLETIONS, json={"prompt": "The sea", "max_tokens": 2, **change})
    assert answer.status_code == 400
    assert names(error_of(answer), param)


def test_a_token_outside_the_vocabulary_is_400(http: httpx.Client, server: Serving) -> None:
    size = server.info.vocab_size
    assert size is not None
    for body in ({"prompt": [size]}, {"prompt": "a", "stop_token_ids": [size]}):
        answer = http.post(COMPLETIONS, json=body)
        assert answer.status_code == 400
        assert str(size) in error_of(answer)["message"]
    assert http.post(COMPLETIONS, json={"prompt": [size - 1], "max_tokens": 1}).is_success


def test_too_long_a_prompt_is_told_by_its_code(http: httpx.Client, server: Serving) -> None:
    limit = server.info.max_model_len
    for body in ({"prompt": [5] * limit}, {"prompt": [5] * (limit - 3), "max_tokens": 4}):
        error = error_of(http.post(COMPLETIONS, json=body))
        assert error["code"] == "context_length_exceeded"
        assert str(limit) in error["message"]
    fits = http.post(COMPLETIONS, json={"prompt": [5] * (limit - 3)}).json()
    assert fits["usage"]["completion_tokens"] <= 3, "the default is what the context has left"


NEUTRAL: list[dict[str, Any]] = [
    {"tools": [], "logit_bias": None, "n": 1, "best_of": 1},
    {"response_format": {"type": "text"}, "user": "me"},
    {"min_p": 0.1, "min_tokens": 1, "logit_bias": {"3": 1}},
    {"temperature": None, "stop": None, "max_tokens": None},
    {"top_k": -1, "stream": False, "stream_options": None},
]


@pytest.mark.parametrize("neutral", NEUTRAL)
def test_fields_that_ask_for_nothing_are_no_error(
    http: httpx.Client, neutral: dict[str, Any]
) -> None:
    body = {"messages": MESSAGES, "max_completion_tokens": 2, **neutral}
    assert http.post(CHAT, json=body).status_code == 200


def test_detokenize_refuses_ids_outside_the_vocabulary(http: httpx.Client) -> None:
    for tokens in ([-1], [2**31], [2**70], ["a"], None):
        answer = http.post("/detokenize", json={"tokens": tokens})
        assert answer.status_code == 400
        assert names(error_of(answer), "tokens")


def test_a_body_over_the_bound_is_413(http: httpx.Client) -> None:
    answer = http.post(CHAT, content=b" " * (MAX_BODY_BYTES + 1))
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "request_too_large"


def test_a_body_of_unknown_length_over_the_bound_is_413(http: httpx.Client) -> None:
    pieces = (b" " * 2**20 for _ in range(MAX_BODY_BYTES // 2**20 + 1))
    assert http.post(CHAT, content=pieces).status_code == 413


@pytest.mark.parametrize("piece", [b"0,", b"[", b"{"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_body_of_more_values_than_the_bound_is_413(
    http: httpx.Client, server: Serving, route: str, piece: bytes
) -> None:
    most = MAX_VALUES + server.info.max_model_len
    answer = http.post(
        route, content=b'{"x": ' + piece * (most + 1), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    error = error_of(answer)
    assert error["code"] == "request_too_large"
    assert f"more than {most} commas" in error["message"]


def test_as_many_values_as_the_bound_are_read(http: httpx.Client, server: Serving) -> None:
    most = MAX_VALUES + server.info.max_model_len
    body = json.dumps({"prompt": "The sea", "max_tokens": 1, "keep_alive": [0] * (most - 3)})
    assert sum(body.count(each) for each in ",[{") == most
    answer = http.post(COMPLETIONS, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200


HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer " + KEY.encode() + b"\r\nContent-Length: 100\r\n\r\n"
)


def exchange(server: Serving, sent: bytes) -> bytes:
    """What the server says to these bytes before it closes or has nothing more to say."""
    with socket.create_connection(("127.0.0.1", server.server.port), PATIENCE_S) as sock:
        sock.sendall(sent)
        return sock.recv(65_536)


def test_a_body_that_never_comes_is_408(
    server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "BODY_TIMEOUT_S", 0.05)
    assert exchange(server, HEAD + b'{"half').startswith(b"HTTP/1.1 408 ")


def test_what_is_not_http_is_told_so(server: Serving, http: httpx.Client) -> None:
    assert exchange(server, b"\x16\x03\x01 not http\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert http.get("/health").status_code == 200


def test_leaving_halfway_through_a_body_is_no_error(
    server: Serving, http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", server.server.port), PATIENCE_S) as sock:
        sock.sendall(HEAD + b'{"half')
    assert http.get("/health").status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "a/b;c", ""])
def test_another_content_type_is_415(http: httpx.Client, kind: str) -> None:
    answer = http.post(CHAT, content=b"{}", headers={"Content-Type": kind})
    assert answer.status_code == 415
    error_of(answer)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405), ("DELETE", "/v1/models", 405), ("PUT", "/llmserve/knobs", 405),
        ("POST", "/metrics", 405), ("GET", "/", 404), ("GET", "/v1/models/", 404),
        ("POST", "/v1/embedding", 404),
    ],
)  # fmt: skip
def test_a_wrong_method_or_route_is_an_openai_error(
    http: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    error_of(answer)


@pytest.mark.parametrize("headers", [{"X-Priority": "high"}, {"X-Priority": "9" * 30},
                                     {"X-Tenant": ""}, {"X-Tenant": b"\xff" * 200}])  # fmt: skip
def test_wrong_headers_are_400(http: httpx.Client, headers: dict[str, Any]) -> None:
    answer = http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 1}, headers=headers)
    assert answer.status_code == 400
    error_of(answer)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from([-1, 0, 1, 2, 2**31, 2**63, 2**64, 1e308, "user", "text", ""])
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), inner, max_size=4),
    max_leaves=8,
)
FIELDS = (
    "messages", "prompt", "tokens", "model", "n", "stop", "seed", "temperature", "top_p", "top_k",
    "logprobs", "top_logprobs", "stream", "stream_options", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "ignore_eos", "tenant", "stop_token_ids",
    "prompt_logprobs", "skip_special_tokens", "include_stop_str_in_output", "suffix",
    "return_tokens_as_token_ids", "priority", "echo", "best_of", "tools", "response_format", "user",
    "return_token_strs",
)  # fmt: skip
small = st.sampled_from([1, 2, 3, -1, 0, 2**70, "1", [], 1.5])  # a reply stays short
bodies = st.fixed_dictionaries(
    {"max_tokens": small, "max_completion_tokens": small},
    optional=dict.fromkeys(FIELDS, values)
    | {"messages": st.just(MESSAGES) | values, "prompt": st.just("The sea") | values},
)  # fmt: skip


@settings(
    max_examples=examples(60), deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(route=st.sampled_from(ROUTES), body=bodies)
def test_whatever_is_sent_the_server_does_not_fail(
    http: httpx.Client, route: str, body: dict[str, Any]
) -> None:
    assert_handled(http.post(route, content=json.dumps(body).encode()))


@settings(
    max_examples=examples(40), deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(route=st.sampled_from(ROUTES), raw=st.binary(max_size=64))
def test_whatever_bytes_are_sent_the_server_does_not_fail(
    http: httpx.Client, route: str, raw: bytes
) -> None:
    assert_handled(http.post(route, content=raw))


def assert_handled(answer: httpx.Response) -> None:
    assert answer.status_code < 500
    if answer.status_code >= 400:
        error_of(answer)
    else:
        assert b'"error"' not in answer.content


FALLBACKS = {
    "LiteLLM": "this model's maximum context length is",
    "LangChain": "prompt is too long",
}
"""By what these clients know that a longer context is wanted, in the error as text; LangChain
also by its code, which not every release of OpenAI's client shows there."""


def test_a_full_context_is_known_to_clients_that_fall_back(
    http: httpx.Client, client: openai.OpenAI, server: Serving
) -> None:
    limit = server.info.max_model_len
    long = [{"role": "user", "content": "a " * (2 * limit)}]
    for route, body in [
        (CHAT, {"messages": long}),
        (CHAT, {"messages": MESSAGES, "max_completion_tokens": limit + 1}),
        (COMPLETIONS, {"prompt": [5] * limit, "max_tokens": 1}),
        (COMPLETIONS, {"prompt": "a " * (2 * limit)}),
        (COMPLETIONS, {"prompt": "a" * 1_000_000}),
    ]:
        error = error_of(http.post(route, json=body))
        assert error["code"] == "context_length_exceeded"
        assert error["param"] == ("messages" if route == CHAT else "prompt")
        assert error["message"].startswith(f"This model's maximum context length is {limit} tokens")
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=server.model, messages=long)  # type: ignore[arg-type]
    for sign in FALLBACKS.values():
        assert sign in str(raised.value).lower()
