"""Which fields of a body are read, ignored or refused: none is dropped silently."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec
import pytest

from llmserve.entrypoints.http import fields, route_fields
from llmserve.entrypoints.http.errors import ApiError
from llmserve.entrypoints.http.field_cures import CURES
from llmserve.entrypoints.http.known_fields import IGNORED, REFUSED
from llmserve.entrypoints.http.nested_fields import INSIDE
from llmserve.entrypoints.http.route_fields import BODIES, IGNORED_HEADER, of_engine, of_route
from support.serving import MESSAGES, Serving, serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGE = MESSAGES[0]

UNKNOWN: list[tuple[dict[str, Any], str, str]] = [
    ({"temprature": 0.5}, "temprature", "did you mean temperature?"),
    ({"max_token": 3}, "max_token", "did you mean max_tokens?"),
    ({"zzz": None}, "zzz", "unknown field 'zzz'"),
    ({"prompt": "x"}, "prompt", "it is a field of /v1/completions"),
    ({"messages": [{**MESSAGE, "rolle": "x"}]}, "messages[0].rolle", "did you mean role?"),
    (
        {"messages": [MESSAGE, {"role": "user", "content": [{"type": "text", "txt": "a"}]}]},
        "messages[1].content[0].txt", "did you mean text?",
    ),
    ({"stream": True, "stream_options": {"include_usge": True}}, "stream_options.include_usge",
     "did you mean include_usage?"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schemas": {}}}},
     "response_format.json_schema.schemas", "did you mean schema?"),
]  # fmt: skip
REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"mirostat": 2}, "mirostat", "not supported"),
    ({"bad_words": ["a"]}, "bad_words", "not supported"),
    ({"extra_body": {"top_k": 3}}, "extra_body", "send its fields themselves"),
    ({"best_of": 3, "n": 2}, "best_of", "not supported"),
    ({"length_penalty": True}, "length_penalty", "not supported"),
    ({"n_predict": 8}, "n_predict", "the field here is max_tokens"),
    ({"messages": [{**MESSAGE, "reasoning_content": "hm"}]}, "messages[0].reasoning_content",
     "not supported"),
    ({"response_format": {"type": "json_object", "schema": {"type": "string"}}},
     "response_format.schema", "response_format.json_schema.schema"),
    ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
     "structured_outputs.whitespace_pattern", "not supported"),
]  # fmt: skip
HARMLESS: list[dict[str, Any]] = [
    {"user": "me", "metadata": {"a": [1]}, "store": True, "service_tier": "flex"},
    {"keep_alive": "5m", "cache_prompt": True, "mirostat": 0, "mirostat_tau": 5.0},
    {"extra_body": {}, "best_of": 2, "n": 2, "length_penalty": 1.0, "tools": None},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]},
            {"role": "assistant", "content": "b", "refusal": None, "annotations": []},
            MESSAGE,
        ]
    },
]


def ids_of(cases: list[tuple[dict[str, Any], str, str]]) -> list[str]:
    return [param for _, param, _ in cases]


@pytest.mark.parametrize(("more", "param", "said"), UNKNOWN, ids=ids_of(UNKNOWN))
def test_a_field_in_no_table_is_400_by_its_name(
    http: httpx.Client, more: dict[str, Any], param: str, said: str
) -> None:
    answer = http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 1, **more})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "unknown_parameter")
    assert said in error["message"]


@pytest.mark.parametrize("server", ["simulator", "torch"], indirect=True)
@pytest.mark.parametrize(("more", "param", "said"), REFUSALS, ids=ids_of(REFUSALS))
def test_a_wish_that_is_not_honoured_is_400_by_its_name(
    http: httpx.Client, more: dict[str, Any], param: str, said: str
) -> None:
    answer = http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 1, **more})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
    assert said in error["message"]


@pytest.mark.parametrize("more", HARMLESS, ids=lambda more: next(iter(more)))
def test_fields_without_effect_on_the_reply_are_taken(
    http: httpx.Client, more: dict[str, Any]
) -> None:
    asked = {"messages": MESSAGES, "max_tokens": 1, "temperature": 0.5, **more}
    answer = http.post(CHAT, json=asked)
    assert answer.status_code == 200, answer.text
    assert IGNORED_HEADER not in answer.headers


def test_an_engine_that_would_drop_a_field_is_never_sent_it() -> None:
    """Of vLLM's own routes, whose classes say what they read."""
    read = {"messages": {"role": None, "content": {"type": None, "image_url": None}},
            "user": None, "use_beam_search": None}  # fmt: skip
    known = of_engine(CHAT, read)
    for body, param in [
        ({"guided_json": {"type": "string"}}, "guided_json"),
        ({"best_of": 2}, "best_of"),
        ({"guided_regex": "a"}, "guided_regex"),
        ({"messages": [{"role": "user", "content": [{"image_url": {}, "imag": 1}]}]},
         "messages[0].content[0].imag"),
    ]:  # fmt: skip
        with pytest.raises(ApiError) as refused:
            fields.check(json.dumps(body).encode(), known)
        assert refused.value.param == param
    taken = {"use_beam_search": True, "user": "me", "tenant": "a", "ttft_slo_ms": 5}
    assert fields.check(json.dumps(taken).encode(), known) == []


def test_anthropics_shape_has_a_table_of_its_own() -> None:
    known = of_engine("/v1/messages", {"messages": None, "max_tokens": None, "metadata": None})
    assert fields.check(b'{"messages": [], "metadata": {}, "service_tier": "auto"}', known) == []
    for name in ("mcp_servers", "max_completion_tokens"):
        with pytest.raises(ApiError) as refused:
            fields.check(json.dumps({name: [1]}).encode(), known)
        assert refused.value.param == name


TWICE = [
    (b'{"max_tokens": 1, "max_tokens": 2}', "max_tokens"),
    (b'{"messages": [{"role": "user", "content": "a", "content" :"b"}]}', "messages[0].content"),
    (b'{"messages": [{"role": "user", "content": "a:b", "role": "system"}]}', "messages[0].role"),
    (b'{"guided_json": {"type": "object", "a": {"b": 1, "b": 2}}}', "guided_json.b"),
    (b'{"logit_bias": {"3": 1, "3": -1}}', "logit_bias.3"),
]


@pytest.mark.parametrize(("raw", "param"), TWICE, ids=[param for _, param in TWICE])
def test_a_name_that_comes_twice_is_400(raw: bytes, param: str) -> None:
    with pytest.raises(ApiError) as refused:
        fields.check(raw, of_route(CHAT))
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize(
    ("method", "route", "name"),
    [
        ("PATCH", "/llmserve/knobs", "max_num_seqs"), ("POST", "/llmserve/sleep", "drain_s"),
        ("POST", CHAT, "max_tokens"), ("POST", "/tokenize", "prompt"),
    ],
)  # fmt: skip
def test_a_name_that_comes_twice_is_400_on_every_route(
    http: httpx.Client, method: str, route: str, name: str
) -> None:
    raw = f'{{"{name}": 8, "{name}": 9}}'.encode()
    answer = http.request(method, route, content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "twice" in answer.json()["error"]["message"]


@pytest.mark.parametrize("text", [":" * 50, '{"a": 1}', "http://x/?a={b}"])
def test_colons_and_braces_in_texts_are_no_names(text: str) -> None:
    raw = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    assert fields.check(raw, of_route(CHAT)) == []


def test_unknown_values_are_never_built() -> None:
    """Or a body of a million values would stop all streams."""
    deep = b'{"user": ' + b"[" * 500 + b"]" * 500 + b', "max_tokens": 1}'
    assert fields.check(deep, of_route(CHAT)) == []
    long = b'{"user": "' + b"a" * 10**6 + b'", "tools": [' + b"0," * 10**5 + b"0]}"
    with pytest.raises(ApiError, match="tools"):
        fields.check(long, fields.of_struct(msgspec.defstruct("Empty", []))._replace(
            ignored={"user": ""}, refused={"tools": ([],)}
        ))  # fmt: skip


@pytest.fixture(scope="module")
def lenient() -> Any:
    with serving("simulator", prefill_ms=1.0, decode_ms=1.0, strict=False) as made:
        yield made


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_is_not_strict_names_what_it_ignores(lenient: Serving, stream: bool) -> None:
    body = {"messages": [{**MESSAGE, "nme": "x"}], "max_tokens": 1, "temprature": 3, "é\n": 1,
            "stream": stream}  # fmt: skip
    with lenient.http() as http:
        answer = http.post(CHAT, json=body)
        assert answer.status_code == 200
        assert set(answer.headers[IGNORED_HEADER].split(", ")) == {
            "temprature", "messages[0].nme", "%C3%A9%0A",
        }  # fmt: skip
        counted = http.post("/tokenize", json={"prompt": "a", "x": 1})
        assert counted.headers[IGNORED_HEADER] == "x"
        known = http.post(CHAT, json={"messages": MESSAGES, "mirostat": 2})
        assert known.status_code == 400, "what it knows and does not honour stays an error"


def test_the_header_is_bounded() -> None:
    header = route_fields._ignored([f"f{i}" * 500 for i in range(500)])[IGNORED_HEADER]
    assert len(header) < 2000
    assert header.endswith("and 480 more")


def test_no_field_stands_in_the_tables_twice() -> None:
    known = [name for table in (IGNORED, REFUSED) for names in table.values() for name in names]
    assert len(known) == len(set(known))
    assert [name for name in CURES if name not in known] == []
    for inside in INSIDE.values():
        assert not inside.read & {*inside.ignored, *inside.refused}


def test_every_route_that_generates_reads_a_model_and_refuses_what_no_struct_has() -> None:
    for path in BODIES:
        known = of_route(path)
        assert "model" in known.read
        asked = {"mirostat": 2}
        with pytest.raises(ApiError, match="mirostat"):
            fields.check(json.dumps(asked).encode(), known)
