"""vLLM's own application from the kernel, with every request through our door."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from llmserve.core.events import Finished, Submitted
from llmserve.entrypoints.session.session import Session
from support.crowd import Watcher

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"enum": [1, 2, 3]}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "paint", "description": "Paint it.", "parameters": SCHEMA},
}
TALK: list[Any] = [{"role": "user", "content": "Tell me a story."}]
LONG = {"messages": TALK, "max_tokens": 2000, "ignore_eos": True}
"""For seconds: whatever a test does meanwhile, it goes on."""


@pytest.fixture
def client(session: Session) -> Iterator[openai.OpenAI]:
    with session.client(max_retries=0) as made:
        yield made


@pytest.fixture
def http(session: Session) -> Iterator[httpx.Client]:
    root = session.url.removesuffix("/v1")
    headers = {"Authorization": f"Bearer {session.api_key}"}
    with httpx.Client(base_url=root, headers=headers, timeout=60) as made:
        yield made


def chat(client: openai.OpenAI, **more: Any) -> Any:
    asked: dict[str, Any] = {"messages": TALK, "max_tokens": 8, "temperature": 0, **more}
    return client.chat.completions.create(**asked)


@pytest.fixture(autouse=True)
def named(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's name, where a test model stands in for the bundled one."""
    monkeypatch.setitem(LONG, "model", session.info.model_id)


def test_a_chat_is_answered_and_is_a_request_like_any_other(
    session: Session, client: openai.OpenAI
) -> None:
    with Watcher(session) as watcher:
        whole = chat(client, model=session.info.model_id, extra_body={"ignore_eos": True})
        parts = list(chat(
            client, model=session.info.model_id, stream=True,
            stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
        ))  # fmt: skip
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content
    assert whole.usage.completion_tokens == parts[-1].usage.completion_tokens == 8
    ends = [event for event in watcher.events if isinstance(event, Finished)]
    assert [(end.reason, end.completion_tokens) for end in ends] == [("length", 8)] * 2
    ids = {row.request_id for step in watcher.steps for row in step.rows}
    assert ids == {end.request_id for end in ends}, "the tape names them as the request log does"


def test_n_choices_are_n_requests_and_one_answer(session: Session, client: openai.OpenAI) -> None:
    with Watcher(session) as watcher:
        reply = chat(
            client, model=session.info.model_id, n=3, temperature=1.0, seed=5,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        streamed = list(chat(
            client, model=session.info.model_id, n=3, temperature=1.0, seed=5, stream=True,
            extra_body={"ignore_eos": True},
        ))  # fmt: skip
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in reply.choices]
    assert len(set(texts)) == 3
    pieces = ["", "", ""]
    for part in streamed:
        for choice in part.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert pieces == texts
    assert sum(isinstance(event, Submitted) for event in watcher.events) == 6


def test_completions_with_logprobs_and_a_stop_string(
    session: Session, client: openai.OpenAI
) -> None:
    model = session.info.model_id
    plain = client.completions.create(
        model=model, prompt="Once", max_tokens=12, temperature=0, logprobs=2,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    choice = plain.choices[0]
    assert choice.logprobs is not None
    assert len(choice.logprobs.token_logprobs or []) == 12
    stop = choice.text[4:6]
    cut = client.completions.create(
        model=model, prompt="Once", max_tokens=12, temperature=0, stop=[stop],
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert cut.choices[0].finish_reason == "stop"
    assert choice.text.startswith(cut.choices[0].text)
    assert stop not in cut.choices[0].text


def test_a_schema_is_kept_whatever_the_model_would_say(
    session: Session, client: openai.OpenAI
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "paint", "schema": SCHEMA}}
    for seed in range(3):
        reply = chat(
            client, model=session.info.model_id, temperature=1.0, seed=seed, max_tokens=300,
            response_format=form,
        )  # fmt: skip
        said = json.loads(reply.choices[0].message.content)
        assert said["colour"] in ("red", "green")
        assert said["count"] in (1, 2, 3)


def test_a_tool_that_is_asked_for_is_called_with_valid_arguments(
    session: Session, client: openai.OpenAI
) -> None:
    reply = chat(
        client, model=session.info.model_id, max_tokens=300, temperature=1.0, seed=1, tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "paint"}},
    )  # fmt: skip
    (call,) = reply.choices[0].message.tool_calls
    assert call.function.name == "paint"
    assert json.loads(call.function.arguments)["colour"] in ("red", "green")


def test_responses_messages_and_tokenize_answer(
    session: Session, client: openai.OpenAI, http: httpx.Client
) -> None:
    model = session.info.model_id
    response = client.responses.create(
        model=model, input="Tell me a story.", max_output_tokens=16, temperature=0
    )
    assert response.status in ("completed", "incomplete")
    assert response.usage is not None
    assert 0 < response.usage.output_tokens <= 16
    message = http.post("/v1/messages", json={"model": model, "max_tokens": 8, "messages": TALK})
    assert message.status_code == 200, message.text
    assert message.json()["type"] == "message"
    tokens = http.post("/tokenize", json={"model": model, "prompt": "Once upon"}).json()["tokens"]
    assert tokens == session.service.engine.tokenizer.encode("Once upon")
    back = http.post("/detokenize", json={"model": model, "tokens": tokens}).json()
    assert back["prompt"] == "Once upon"


def test_models_names_the_model_and_what_acts_on_the_engine_is_not_served(
    session: Session, client: openai.OpenAI, http: httpx.Client
) -> None:
    assert [one.id for one in client.models.list()] == [session.info.model_id]
    for path in ("/scale_elastic_ep", "/inference/v1/generate", "/invocations", "/load"):
        assert http.post(path, json={}).status_code == 404
    assert http.get("/health").status_code == 200
    assert "llmserve_" in http.get("/metrics").text
    assert http.get("/llmserve/knobs").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("knobs", "status", "code"),
    [
        ({"queue_mode": "reject"}, 429, "no_place"),
        ({"queue_max": 0}, 429, "queue_full"),
        ({"queue_timeout_s": 0.2}, 503, "queue_timeout"),
    ],
)
def test_a_refusal_is_a_status_even_when_a_stream_was_asked_for(
    session: Session,
    http: httpx.Client,
    knobs: dict[str, object],
    status: int,
    code: str,
    stream: bool,
) -> None:
    before = {name: getattr(session.knobs, name) for name in (*knobs, "max_active")}
    session.set(max_active=1)
    with http.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as first:
        lines = first.iter_lines()  # dropping it would close the stream
        next(lines)
        session.set(**knobs)
        refused = http.post("/v1/chat/completions", json=LONG | {"stream": stream})
        session.set(**before)
    assert refused.status_code == status, refused.text
    assert refused.json()["error"]["code"] == code
    if status == 429:
        assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_a_504(
    session: Session, http: httpx.Client, stream: bool
) -> None:
    engine: Any = session.service.engine
    session.runtime.call(engine.pause())
    try:
        session.set(request_timeout_s=0.2)
        late = http.post("/v1/chat/completions", json=LONG | {"stream": stream})
    finally:
        session.set(request_timeout_s=900)
        session.runtime.call(engine.resume())
    assert late.status_code == 504, late.text
    assert late.json()["error"]["code"] == "request_timeout"


def test_tenant_and_priority_come_through_by_body_and_by_header(
    session: Session, http: httpx.Client
) -> None:
    short = LONG | {"max_tokens": 2}
    with Watcher(session) as watcher:
        body = http.post("/v1/chat/completions", json=short | {"tenant": "ada", "priority": 3})
        head = http.post(
            "/v1/chat/completions", json=short, headers={"X-Tenant": "bob", "X-Priority": "-2"}
        )
    assert (body.status_code, head.status_code) == (200, 200)
    told = [(e.tenant, e.priority) for e in watcher.events if isinstance(e, Submitted)]
    assert told == [("ada", 3), ("bob", -2)]


def test_a_client_that_leaves_frees_its_place(session: Session, http: httpx.Client) -> None:
    with Watcher(session) as watcher:
        with http.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as reply:
            next(reply.iter_lines())
        session.generate("go", max_tokens=400, ignore_eos=True)
    ends = [event for event in watcher.events if isinstance(event, Finished)]
    assert [end.reason for end in ends] == ["abort", "length"]
    assert ends[0].completion_tokens < 2000


def test_a_wrong_body_is_a_400_and_a_wrong_key_a_401(session: Session, http: httpx.Client) -> None:
    wrong = http.post("/v1/chat/completions", json=LONG | {"temperature": -1})
    assert wrong.status_code == 400
    assert "temperature" in wrong.json()["error"]["message"]
    too_long = http.post("/v1/chat/completions", json=LONG | {"max_tokens": 4000})
    assert too_long.status_code == 400
    stranger = http.post(
        "/v1/chat/completions", json=LONG, headers={"Authorization": "Bearer wrong"}
    )
    assert stranger.status_code == 401
