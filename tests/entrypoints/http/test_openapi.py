"""/openapi.json and /docs: every route, every field that is read, and nothing that runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from starlette.routing import Route

from llmserve.core.bounds import BOUNDS
from llmserve.core.clock import MonotonicClock
from llmserve.core.events import EventBus
from llmserve.core.knobs import SPECS, KnobBoard
from llmserve.engines.simulator.engine import SimulatorEngine
from llmserve.entrypoints.http.app import build_app
from llmserve.entrypoints.http.fields_page import fields_page, renewed
from llmserve.entrypoints.http.known_fields import IGNORED, REFUSED
from llmserve.entrypoints.http.openapi.document import document
from llmserve.entrypoints.http.route_fields import BODIES, of_route
from llmserve.observe import Telemetry
from llmserve.serving.api_keys import Keyring
from llmserve.serving.service import Service
from support.serving import MESSAGES, Serving

CHAT = "/v1/chat/completions"
HTTP_PAGE = Path(__file__).parents[3] / "docs" / "http.md"


@pytest.fixture(scope="module")
def routes() -> list[Route]:
    bus, clock = EventBus(), MonotonicClock()
    engine = SimulatorEngine(sink=lambda record: None, clock=clock)
    service = Service(engine, KnobBoard(), bus, clock)
    app = build_app(service, Telemetry(bus, clock), Keyring(None, {}))
    return [route for route in app.routes if isinstance(route, Route)]


@pytest.fixture(scope="module")
def described(routes: list[Route]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(document(routes)))
    return found


def body_of(described: dict[str, Any], path: str, verb: str = "post") -> dict[str, Any]:
    body: dict[str, Any] = described["paths"][path][verb]["requestBody"]["content"]
    schema: dict[str, Any] = body["application/json"]["schema"]
    return schema


def test_the_tables_are_on_the_page_of_http() -> None:
    """If this fails: python -m llmserve.entrypoints.http.fields_page docs/http.md"""
    page = HTTP_PAGE.read_text()
    assert renewed(page) == page
    assert fields_page() in page


def test_every_route_and_method_is_described(
    routes: list[Route], described: dict[str, Any]
) -> None:
    paths = described["paths"]
    for route in routes:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
        assert {verb.upper() for verb in paths[path]} == (route.methods or set()) - {"HEAD"}
    assert all(one["summary"] for verbs in paths.values() for one in verbs.values())
    names = [one["operationId"] for verbs in paths.values() for one in verbs.values()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", BODIES)
def test_every_field_is_described_as_it_is_judged(described: dict[str, Any], path: str) -> None:
    schema, known = body_of(described, path), of_route(path)
    Draft202012Validator.check_schema(schema)
    assert set(schema["properties"]) == known.read | {*known.ignored} | {*known.refused}
    assert schema["additionalProperties"] is False
    for name in known.read:
        assert schema["properties"][name], f"{name} is said to be anything"
    for name, neutral in known.refused.items():
        if name not in known.read:
            assert schema["properties"][name]["enum"] == [*map(json_like, neutral), None]


def json_like(value: object) -> object:
    return json.loads(json.dumps(value))


def test_bounds_are_those_that_are_checked(described: dict[str, Any]) -> None:
    schema = body_of(described, CHAT)["properties"]
    assert schema["n"]["maximum"] == BOUNDS["n"].high
    assert schema["top_p"]["exclusiveMinimum"] == 0
    assert schema["max_completion_tokens"]["minimum"] == BOUNDS["max_tokens"].low
    knobs = body_of(described, "/llmserve/knobs", "patch")["properties"]
    assert set(knobs) == {*SPECS, "evict"}
    assert knobs["policy"]["enum"] == [*SPECS["policy"].choices]


ACCEPTED: list[dict[str, Any]] = [
    {}, {"n": 2, "stop": ["a"], "logit_bias": {"3": 1.5}, "user": {"any": 1}, "tools": None},
    {"stream": True, "stream_options": {"include_usage": True}, "top_k": -1, "best_of": 1},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
    {"structured_outputs": {"grammar": 'start: "a"'}},
]  # fmt: skip
REJECTED: list[dict[str, Any]] = [
    {"n": 0}, {"stop": 3}, {"zzz": 1}, {"mirostat": 1}, {"messages": []}, {"top_p": 0},
    {"messages": [{"role": "user", "content": "a", "nme": 1}]}, {"temperature": "hot"},
    {"stream_options": {"x": 1}}, {"structured_outputs": {"structural_tag": "a"}},
    {"messages": [{"role": "narrator", "content": "a"}]},
]  # fmt: skip


@pytest.mark.parametrize("more", [*ACCEPTED, *REJECTED], ids=json.dumps)
@pytest.mark.parametrize("server", ["simulator"], indirect=True)
def test_the_schema_and_the_server_agree(
    http: httpx.Client, described: dict[str, Any], more: dict[str, Any]
) -> None:
    body = {"messages": MESSAGES, "max_tokens": 1, "temperature": 0.5, **more}
    fits = Draft202012Validator(body_of(described, CHAT)).is_valid(body)
    assert fits == (more in ACCEPTED)
    constrained = "response_format" in more  # which not every engine has
    if not constrained:
        assert (http.post(CHAT, json=body).status_code == 200) == fits


def test_answers_fit_what_is_described(http: httpx.Client, server: Serving) -> None:
    described = http.get("/openapi.json").json()
    asked = {"messages": MESSAGES, "max_tokens": 2}
    for path, verb, body in [
        (CHAT, "post", asked), ("/v1/completions", "post", {"prompt": "a", "max_tokens": 1}),
        ("/tokenize", "post", {"prompt": "a"}), ("/detokenize", "post", {"tokens": [5]}),
        ("/v1/models", "get", None), ("/health", "get", None), ("/llmserve/knobs", "get", None),
        ("/llmserve/steps", "get", None), (CHAT, "post", {"messages": []}),
        ("/tokenize", "post", {}),
    ]:  # fmt: skip
        answer = http.request(verb, path, json=body)
        told = described["paths"][path][verb]["responses"][str(answer.status_code)]
        schema = told["content"]["application/json"]["schema"] | {
            "components": described["components"]
        }
        Draft202012Validator(schema).validate(answer.json())


def test_vllms_routes_are_described_by_what_its_classes_read(
    http: httpx.Client, server: Serving
) -> None:
    http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 1})  # its application is made now
    found = http.get("/openapi.json").json()
    names = body_of(found, CHAT)["properties"]
    assert {"messages", "temperature", "tenant", "user", "mirostat"} <= set(names)


def test_both_need_no_key_and_the_page_runs_and_loads_nothing(server: Serving) -> None:
    with server.http(None) as http:
        assert http.get("/openapi.json").json()["openapi"] == "3.1.0"
        answer = http.get("/docs")
    assert answer.status_code == 200
    assert "<script" not in answer.text
    assert re.findall(r"(?:src|href)=\"([^\"]*)\"", answer.text) == ["/openapi.json"]
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert server.model not in answer.text
    for path in BODIES:
        assert path in answer.text


def test_a_name_of_the_tables_cannot_break_the_page(server: Serving) -> None:
    assert not [
        name
        for table in (IGNORED, REFUSED)
        for names in table.values()
        for name in names
        if not re.fullmatch(r"[\w.]+", name)
    ]
