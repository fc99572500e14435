"""POST /v1/responses through the official client, and what it says of having no memory."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from llmserve.core.events import FirstToken
from support.serving import MESSAGES, Serving, sent_field

PATH = "/v1/responses"
PROMPT = MESSAGES[0]["content"]
USER = {"role": "user", "content": PROMPT}
BEGIN = [
    "response.created", "response.in_progress", "response.output_item.added",
    "response.content_part.added",
]  # fmt: skip
END = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]


def create(client: openai.OpenAI, model: str, **fields: Any) -> Response:
    body = {"input": PROMPT, "temperature": 0, "max_output_tokens": 12, **fields}
    found: Response = client.responses.create(model=model, **body)
    return found


def streamed(http: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    """The events as they came, each under its own name."""
    body = {"input": PROMPT, "temperature": 0, "max_output_tokens": 12, "stream": True, **fields}
    answer = http.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in answer.text.strip().split("\n\n"):
        if block == "data: [DONE]":
            continue
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def error_of(http: httpx.Client, body: Any, status: int = 400) -> Any:
    answer = http.post(PATH, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def chat_text(client: openai.OpenAI, model: str, messages: list[Any]) -> str | None:
    answer = client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=12
    )
    return answer.choices[0].message.content


def test_a_response_says_what_a_chat_says(client: openai.OpenAI, server: Serving) -> None:
    response = create(client, server.model)
    assert response.output_text == chat_text(client, server.model, MESSAGES)
    assert response.usage is not None
    prompt = server.service.engine.tokenizer.chat(MESSAGES)
    assert response.usage.input_tokens == len(prompt)
    assert response.usage.output_tokens == 12
    assert response.usage.total_tokens == len(prompt) + 12
    assert response.model == server.model
    assert response.id.startswith("resp_")


def test_a_reply_that_is_cut_off_is_incomplete(client: openai.OpenAI, server: Serving) -> None:
    response = create(client, server.model)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.error is None


def test_a_reply_that_ends_by_itself_is_completed(http: httpx.Client, server: Serving) -> None:
    said = http.post(PATH, json={"input": PROMPT, "temperature": 0, "max_output_tokens": 12})
    word = said.json()["output"][0]["content"][0]["text"].split()[-1]
    body = {"input": PROMPT, "temperature": 0, "max_output_tokens": 12, "stop": word}
    answer = http.post(PATH, json=body).json()
    assert answer["status"] == "completed"
    assert answer["incomplete_details"] is None
    assert answer["output"][0]["status"] == "completed"
    assert word not in answer["output"][0]["content"][0]["text"]


def test_an_answer_fits_openais_own_types(http: httpx.Client, server: Serving) -> None:
    answer = http.post(PATH, json={"input": PROMPT, "max_output_tokens": 4}).json()
    Response.model_validate(answer)
    events = TypeAdapter(ResponseStreamEvent)
    for event in streamed(http):
        events.validate_python(event)


def test_that_nothing_is_stored_is_said(http: httpx.Client, server: Serving) -> None:
    answer = http.post(PATH, json={"input": PROMPT, "max_output_tokens": 4, "store": True}).json()
    assert answer["store"] is False


def test_events_come_in_openais_order_and_are_counted(
    http: httpx.Client, server: Serving
) -> None:
    events = streamed(http)
    kinds = [event["type"] for event in events]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert kinds == [*BEGIN, *[d["type"] for d in deltas], *END, "response.incomplete"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    item = events[2]["item"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "in_progress")
    places = {(e["item_id"], e["output_index"], e["content_index"]) for e in deltas}
    assert places == {(item["id"], 0, 0)}
    assert deltas


def test_the_last_event_is_what_the_others_add_up_to(http: httpx.Client, server: Serving) -> None:
    events = streamed(http)
    text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    final = events[-1]["response"]
    done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert final["output"] == done
    assert done[0]["content"][0]["text"] == text
    whole = http.post(PATH, json={"input": PROMPT, "temperature": 0, "max_output_tokens": 12})
    assert whole.json()["output"][0]["content"][0]["text"] == text
    assert final["usage"]["output_tokens"] == whole.json()["usage"]["output_tokens"]
    assert {events[0]["response"]["id"]} == {final["id"]}
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []


def test_the_official_client_follows_a_stream(client: openai.OpenAI, server: Serving) -> None:
    with client.responses.stream(
        model=server.model, input=PROMPT, temperature=0, max_output_tokens=12
    ) as stream:
        kinds = [event.type for event in stream]
    assert kinds.count("response.output_text.done") == 1
    assert kinds[-1] == "response.incomplete"


def test_instructions_are_a_system_message(client: openai.OpenAI, server: Serving) -> None:
    response = create(client, server.model, instructions="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    assert response.output_text == chat_text(client, server.model, messages)


def test_an_earlier_answer_goes_back_as_it_came(client: openai.OpenAI, server: Serving) -> None:
    first = create(client, server.model, max_output_tokens=4)
    earlier = [item.model_dump(exclude_none=True) for item in first.output]
    then = {"role": "user", "content": [{"type": "input_text", "text": "Go on."}]}
    second = create(client, server.model, input=[USER, *earlier, then])
    messages = [USER, {"role": "assistant", "content": first.output_text}]
    messages += [{"role": "user", "content": "Go on."}]
    assert second.output_text == chat_text(client, server.model, messages)


def test_log_probabilities_come_where_they_are_included(
    client: openai.OpenAI, server: Serving
) -> None:
    included: Any = ["message.output_text.logprobs"]
    response = create(client, server.model, include=included, top_logprobs=2)
    part: Any = response.output[0].to_dict()["content"]
    logprobs = part[0]["logprobs"]
    assert "".join(one["token"] for one in logprobs) == response.output_text
    assert all(one["logprob"] <= 0 and len(one["top_logprobs"]) <= 2 for one in logprobs)


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"a": "b"}},
        {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k"},
        {"background": False, "previous_response_id": None, "conversation": None},
        {"truncation": "disabled", "tools": [], "tool_choice": "auto"},
        {"include": [], "text": {"format": {"type": "text"}}},
        {"include": ["reasoning.encrypted_content"]},
        {"service_tier": "auto", "parallel_tool_calls": True, "max_tool_calls": 4},
        {"reasoning": None, "top_logprobs": 0, "stream_options": {"include_obfuscation": False}},
    ],
)
def test_fields_that_ask_for_nothing_more_are_no_error(
    http: httpx.Client, server: Serving, fields: dict[str, Any]
) -> None:
    answer = http.post(PATH, json={"input": PROMPT, "max_output_tokens": 4, **fields})
    assert answer.status_code == 200, answer.text


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,aaaa", "detail": "auto"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"truncation": "auto"}, "truncation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"reasoning": {"effort": "high"}}, "reasoning"),
    ({"text": {"verbosity": "low"}}, "text"),
    ({"text": {"format": {"type": "yaml"}}}, "text"),
    ({"include": ["everything"]}, "include"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": "many"}, "max_output_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"top_logprobs": 99}, "top_logprobs"),
    ({"input": []}, "input"),
    ({"input": 3}, "input"),
    ({"input": [{"role": "user"}]}, "input"),
    ({"input": [{"role": "narrator", "content": "x"}]}, "input"),
    ({"input": [{"role": "user", "content": [IMAGE]}]}, "input"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
    ({"input": [{"type": "web_search_call", "id": "ws_1", "status": "completed"}]}, "input"),
    ({"input": [{"role": "user", "content": "x", "shouted": True}]}, "input"),
    ({"instructions": 3}, "instructions"),
    ({"messages": MESSAGES}, "messages"),
    ({"spoken": True}, "spoken"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=[json.dumps(f)[:60] for f, _ in WRONG])
def test_what_is_not_served_is_400_by_its_name(
    http: httpx.Client, server: Serving, fields: dict[str, Any], param: str
) -> None:
    error = error_of(http, {"input": PROMPT, "max_output_tokens": 4, **fields})
    assert error["type"] == "invalid_request_error"
    assert sent_field(error) == param
    assert error["message"]


def test_too_long_an_input_has_its_code(http: httpx.Client, server: Serving) -> None:
    error = error_of(http, {"input": "word " * 40_000})
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "input"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/resp_1"), ("DELETE", "/resp_1"), ("POST", "/resp_1/cancel"),
     ("GET", "/resp_1/input_items")],
)  # fmt: skip
def test_nothing_is_found_again(
    http: httpx.Client, server: Serving, method: str, path: str
) -> None:
    answer = http.request(method, PATH + path)
    assert answer.status_code == 404
    assert "keeps nothing" in answer.json()["error"]["message"]


def test_an_error_within_a_stream_is_its_last_event(own: Serving) -> None:
    body = {"input": PROMPT, "ignore_eos": True, "stream": True}
    with (
        own.http() as http,
        own.tail() as tail,
        http.stream("POST", PATH, json=body) as answer,
    ):
        assert answer.status_code == 200
        tail.wait(FirstToken)
        own.set({"request_timeout_s": 0.01})
        *_, name, data = [line for line in answer.iter_lines() if line]
    assert name == "event: response.failed"
    failed = json.loads(data.removeprefix("data: "))["response"]
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "server_error"
    assert "request_timeout_s" in failed["error"]["message"]
    assert [item["status"] for item in failed["output"]] == ["incomplete"]


def test_a_client_that_leaves_frees_its_slot(own: Serving) -> None:
    sock = own.post_and_hold(PATH, {"input": PROMPT, "ignore_eos": True, "stream": True})
    with own.tail() as tail:
        tail.wait(FirstToken)
        sock.close()
        with own.http() as http:
            answer = http.post(PATH, json={"input": PROMPT, "max_output_tokens": 2})
    assert answer.status_code == 200


@pytest.mark.parametrize("server", ["torch"], indirect=True)
def test_bytes_of_the_tokens_are_the_text_with_what_ended_it(
    http: httpx.Client, server: Serving
) -> None:
    asked = {"input": PROMPT, "max_output_tokens": 8, "temperature": 0}
    asked |= {"include_stop_str_in_output": True, "include": ["message.output_text.logprobs"]}

    def said(**more: Any) -> Any:
        (part,) = http.post(PATH, json={**asked, **more}).json()["output"][0]["content"]
        data = b"".join(bytes(one["bytes"] or ()) for one in part["logprobs"])
        assert data.decode() == part["text"]
        return part["text"]

    whole = said()
    tokens = http.post("/tokenize", json={"prompt": whole}).json()["tokens"]
    assert whole.startswith(said(stop_token_ids=[tokens[3]]))
    assert said(stop=[" "]).endswith(" ")
    shown = said(input="What is 7 + 5?", max_output_tokens=40, skip_special_tokens=False)
    assert shown.endswith("|>")
