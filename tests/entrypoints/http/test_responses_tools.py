"""Function tools over /v1/responses, and forms of its text."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from support.serving import MESSAGES, Serving, sent_field

PATH = "/v1/responses"
PROMPT = MESSAGES[0]["content"]
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Lima"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
CALL = {"type": "function_call", "call_id": "call_1", "name": "weather",
        "arguments": '{"city": "Oslo"}'}  # fmt: skip


def ask(http: httpx.Client, **fields: Any) -> Any:
    body = {"input": PROMPT, "temperature": 0, "max_output_tokens": 128, **fields}
    answer = http.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    return answer


def events_of(answer: httpx.Response) -> list[Any]:
    lines = answer.text.split("\n")
    return [json.loads(line[len("data: ") :]) for line in lines if line.startswith("data: {")]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_call_that_must_come_comes_and_fits(
    http: httpx.Client, server: Serving, choice: Any
) -> None:
    answer = ask(http, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False).json()
    assert answer["status"] == "completed"
    (call,) = answer["output"]
    assert (call["type"], call["name"], call["status"]) == ("function_call", "weather", "completed")
    assert json.loads(call["arguments"])["city"] in ("Oslo", "Lima")
    assert call["call_id"]
    assert call["id"] != call["call_id"]
    assert answer["tools"][0]["name"] == "weather"


def test_a_streamed_call_has_its_own_events(http: httpx.Client, server: Serving) -> None:
    fields = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    events = events_of(ask(http, stream=True, **fields))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:3] == ["created", "in_progress", "output_item.added"]
    assert set(kinds[3:-3]) == {"function_call_arguments.delta"}
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    arguments = "".join(event["delta"] for event in events[3:-3])
    assert events[-3]["arguments"] == arguments == events[-2]["item"]["arguments"]
    assert json.loads(arguments)["city"] in ("Oslo", "Lima")
    assert events[2]["item"]["arguments"] == ""
    assert events[-1]["response"]["output"] == [events[-2]["item"]]
    assert len({event["item_id"] for event in events[3:-2]} | {events[2]["item"]["id"]}) == 1


def test_a_tool_that_may_not_be_called_is_not(http: httpx.Client, server: Serving) -> None:
    answer = ask(http, tools=[WEATHER], tool_choice="none", max_output_tokens=8).json()
    assert [item["type"] for item in answer["output"]] == ["message"]


def test_a_result_goes_back_with_its_call(http: httpx.Client, server: Serving) -> None:
    result = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}
    items = [{"role": "user", "content": PROMPT}, CALL, result]
    answer = ask(http, input=items, tools=[WEATHER], max_output_tokens=8).json()
    call = {"id": "call_1", "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}  # fmt: skip
    chat = {
        "messages": [
            MESSAGES[0], {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ],
        "tools": [{"type": "function", "function": {
            name: WEATHER[name] for name in ("name", "description", "parameters")}}],
        "max_tokens": 8, "temperature": 0,
    }  # fmt: skip
    told = http.post("/v1/chat/completions", json=chat).json()
    assert answer["usage"]["input_tokens"] == told["usage"]["prompt_tokens"]


def test_calls_and_reasoning_go_back_in_any_order(http: httpx.Client, server: Serving) -> None:
    items = [
        {"role": "user", "content": PROMPT},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        CALL, {**CALL, "call_id": "call_2", "id": "fc_2", "status": "completed"},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
        {"type": "function_call_output", "call_id": "call_2",
         "output": [{"type": "input_text", "text": "sun"}]},
    ]  # fmt: skip
    assert ask(http, input=items, tools=[WEATHER], max_output_tokens=8).json()["output"]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
        {"tools": [{"type": "mcp", "server_label": "x", "server_url": "http://x"}]},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "news"}},
        {"tools": [WEATHER], "parallel_tool_calls": "one"},
    ],
    ids=lambda fields: json.dumps(fields)[:60],
)
def test_what_is_no_tool_here_is_400_by_its_name(
    http: httpx.Client, server: Serving, fields: dict[str, Any]
) -> None:
    answer = http.post(PATH, json={"input": PROMPT, "max_output_tokens": 4, **fields})
    assert answer.status_code == 400, answer.text
    assert sent_field(answer.json()["error"]) == list(fields)[-1]


SCHEMA = WEATHER["parameters"]


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "name": "w", "schema": SCHEMA, "strict": True},
        {"type": "json_object"},
    ],
)
def test_a_text_has_the_form_that_is_asked_for(
    http: httpx.Client, server: Serving, form: dict[str, Any]
) -> None:
    answer = ask(http, text={"format": form}, max_output_tokens=200).json()
    text = answer["output"][0]["content"][0]["text"]
    if form["type"] == "json_schema":
        assert json.loads(text)["city"] in ("Oslo", "Lima")
    else:
        assert text.lstrip().startswith("{")


def test_a_form_that_no_reply_fits_is_400_by_its_name(
    http: httpx.Client, server: Serving
) -> None:
    for schema in ({"type": "object", "required": ["a"], "properties": {"a": False}}, 3):
        form = {"type": "json_schema", "name": "w", "schema": schema}
        answer = http.post(PATH, json={"input": PROMPT, "text": {"format": form}})
        assert answer.status_code == 400, answer.text
        assert sent_field(answer.json()["error"]) == "text"


@pytest.mark.parametrize("server", ["torch", "simulator"], indirect=True)
@pytest.mark.parametrize("limit", [96, 112, 128])
def test_calls_that_are_whole_complete_a_response(
    http: httpx.Client, server: Serving, limit: int
) -> None:
    """A further call might have followed, had there been room."""
    answer = ask(
        http, tools=[WEATHER], tool_choice="required", max_output_tokens=limit, temperature=1.5,
        seed=limit,
    ).json()  # fmt: skip
    assert [item["type"] for item in answer["output"]] == ["function_call"] * len(answer["output"])
    assert [item["status"] for item in answer["output"]] == ["completed"] * len(answer["output"])
    assert answer["status"] == "completed"
