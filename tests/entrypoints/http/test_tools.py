"""Tools on a running server, of each engine: calls fit their schemas, whatever the model."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.examples import examples
from support.serving import MESSAGES, Serving, sent_field

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["c", "f"]},
        "near": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
    },
    "required": ["city", "days"],
}
TOOLS: list[Any] = [
    {"type": "function", "function": {
        "name": "weather", "description": "The weather of a city", "parameters": CITY,
    }},
    {"type": "function", "function": {"name": "now"}},
]  # fmt: skip
SCHEMAS = {"weather": CITY, "now": {"type": "object"}}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


def ask(client: openai.OpenAI, server: Serving, **fields: Any) -> Any:
    asked: dict[str, Any] = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 160}
    asked |= {"temperature": 1.2, **fields}
    return client.chat.completions.create(model=server.model, **asked)


def check_calls(message: Any) -> list[str]:
    """The names of a message's calls, whose arguments fit."""
    for call in message.tool_calls:
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
        assert call.type == "function"
    ids = [call.id for call in message.tool_calls]
    assert all(ids)
    assert len({*ids}) == len(ids)
    return [call.function.name for call in message.tool_calls]


def test_required_is_a_call_that_fits(client: openai.OpenAI, server: Serving) -> None:
    for seed in range(4):
        (choice,) = ask(client, server, tool_choice="required", seed=seed, max_tokens=400).choices
        assert choice.finish_reason == "tool_calls"
        assert not choice.message.content
        assert {*check_calls(choice.message)} <= SCHEMAS.keys()


def test_a_named_tool_is_called_once(client: openai.OpenAI, server: Serving) -> None:
    for seed in range(3):
        (choice,) = ask(client, server, tool_choice=NAMED, seed=seed).choices
        assert check_calls(choice.message) == ["weather"]


def test_a_named_call_ends_as_all_calls_do(client: openai.OpenAI, server: Serving) -> None:
    (choice,) = ask(client, server, tool_choice=NAMED, seed=1).choices
    assert choice.finish_reason == "tool_calls"


def test_a_call_ends_in_time_however_much_the_model_would_say(
    client: openai.OpenAI, server: Serving
) -> None:
    for most in (72, 80, 120):
        (choice,) = ask(client, server, tool_choice=NAMED, max_tokens=most, temperature=2.0).choices
        assert check_calls(choice.message) == ["weather"]
        assert choice.finish_reason == "tool_calls"


def test_a_call_that_has_no_room_is_cut_and_says_so(client: openai.OpenAI, server: Serving) -> None:
    (choice,) = ask(client, server, tool_choice=NAMED, max_tokens=6).choices
    assert choice.finish_reason == "length"
    assert not choice.message.content


def test_one_call_where_parallel_ones_are_not_wanted(
    client: openai.OpenAI, server: Serving
) -> None:
    for seed in range(3):
        asked = {"tool_choice": "required", "parallel_tool_calls": False, "seed": seed}
        (choice,) = ask(client, server, **asked, max_tokens=400).choices
        assert len(check_calls(choice.message)) == 1


def test_none_calls_nothing(client: openai.OpenAI, server: Serving) -> None:
    (choice,) = ask(client, server, tool_choice="none", max_tokens=12).choices
    assert choice.message.tool_calls is None
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")


def test_auto_leaves_a_model_its_words(client: openai.OpenAI, server: Serving) -> None:
    (choice,) = ask(client, server, max_tokens=12, temperature=0).choices
    assert choice.message.tool_calls is None
    assert choice.message.content
    (plain,) = ask(client, server, max_tokens=12, temperature=0, tool_choice="none").choices
    assert choice.message.content == plain.message.content


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_streamed_call_comes_in_pieces_and_is_the_whole_one(
    client: openai.OpenAI, server: Serving, choice: Any
) -> None:
    asked = {"tool_choice": choice, "seed": 5, "temperature": 0.8, "max_tokens": 300}
    whole = ask(client, server, **asked).choices[0].message.tool_calls
    events = [*ask(client, server, **asked, stream=True, stream_options={"include_usage": True})]
    assert events[-1].usage.completion_tokens > 0
    calls: list[dict[str, str]] = []
    finish, pieces = None, 0
    for event in events[:-1]:
        (part,) = event.choices
        assert not part.delta.content
        finish = part.finish_reason or finish
        for piece in part.delta.tool_calls or ():
            if piece.index == len(calls):
                assert piece.id
                assert piece.type == "function"
                calls.append({"name": piece.function.name, "arguments": ""})
            elif server.info.engine != "vllm":
                assert piece.id is piece.type is piece.function.name is None
            calls[piece.index]["arguments"] += piece.function.arguments or ""
            pieces += 1
    assert finish == "tool_calls"
    assert calls == [
        {"name": call.function.name, "arguments": call.function.arguments} for call in whole
    ]
    assert pieces > len(calls)


def test_each_choice_has_calls_of_its_own(client: openai.OpenAI, server: Serving) -> None:
    choices = ask(client, server, tool_choice=NAMED, n=3, seed=3).choices
    assert [check_calls(choice.message) for choice in choices] == [["weather"]] * 3
    assert len({choice.message.tool_calls[0].id for choice in choices}) == 3
    seen: dict[int, str] = {}
    for event in ask(client, server, tool_choice=NAMED, n=3, seed=3, stream=True):
        for part in event.choices:
            for piece in part.delta.tool_calls or ():
                seen[part.index] = seen.get(part.index, "") + (piece.function.arguments or "")
    assert [seen[index] for index in range(3)] == [
        choice.message.tool_calls[0].function.arguments for choice in choices
    ]


def test_logprobs_come_with_a_call(client: openai.OpenAI, server: Serving) -> None:
    asked = {"tool_choice": NAMED, "logprobs": True, "top_logprobs": 1, "seed": 2}
    whole = ask(client, server, **asked)
    assert len(whole.choices[0].logprobs.content) >= whole.usage.completion_tokens - 1
    streamed = [
        token
        for event in ask(client, server, **asked, stream=True)
        for part in event.choices
        if part.logprobs is not None
        for token in part.logprobs.content or ()
    ]
    assert [one.token for one in streamed] == [
        one.token for one in whole.choices[0].logprobs.content
    ]


def test_a_history_with_calls_is_read(client: openai.OpenAI, server: Serving) -> None:
    call = {"id": "call_abc", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    history = [
        {"role": "system", "content": "Be brief."},
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_abc", "content": "noon"},
    ]
    for fields in ({}, {"tools": openai.NOT_GIVEN}):
        answer = ask(client, server, messages=history, max_tokens=8, **fields)
        assert answer.choices[0].message.content
    longer = ask(client, server, messages=history, max_tokens=1).usage.prompt_tokens
    assert longer > ask(client, server, messages=history[:2], max_tokens=1).usage.prompt_tokens


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("tool_choice", {"tool_choice": {"type": "function", "function": {"name": "later"}}}),
        ("tool_choice", {"tool_choice": "required", "tools": openai.NOT_GIVEN}),
        ("tool_choice", {"tool_choice": "whatever"}),
        ("tools", {"tools": [{"type": "function"}]}),
        ("tools", {"tools": [TOOLS[0], TOOLS[0]], "tool_choice": "required"}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
        ("messages", {"messages": [{"role": "assistant", "content": "x", "tool_calls": [3]}]}),
    ],
    ids=[
        "unknown", "without tools", "another word", "no function", "two of one name", "no name",
        "no call",
    ],
)
def test_what_is_wrong_with_tools_is_400_by_its_field(
    client: openai.OpenAI, server: Serving, field: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, server, **fields)
    assert sent_field({"param": refused.value.param}) == field


def test_a_tool_that_no_arguments_fit_is_400(client: openai.OpenAI, server: Serving) -> None:
    never = {"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}
    tools = [{"type": "function", "function": {"name": "never", "parameters": never}}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, server, tools=tools, tool_choice="required", stream=stream)
        assert refused.value.param == "tools"
    assert ask(client, server, tool_choice=NAMED, max_tokens=4).usage.completion_tokens == 4


LEAVES = st.sampled_from([
    {"type": "string"}, {"type": "string", "maxLength": 5}, {"type": "integer"},
    {"type": "number", "minimum": 0}, {"type": "boolean"}, {"type": "null"}, {"enum": ["a", 1]},
])  # fmt: skip
PARTS = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(lambda one: {"type": "array", "items": one}, inner)
        | st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner)
        | st.builds(
            lambda a, b: {"type": "object", "properties": {"x": a, "y": b}, "required": ["x"]},
            inner,
            inner,
        )
    ),
    max_leaves=5,
)
PARAMETERS = st.dictionaries(st.sampled_from(["p", "q", "r_s", "ü"]), PARTS, max_size=3).flatmap(
    lambda parts: st.integers(0, len(parts)).map(
        lambda needed: {
            "type": "object",
            "properties": parts,
            "required": [*parts][:needed],
        }
    )
)


@given(parameters=PARAMETERS, seed=st.integers(0, 99))
@settings(
    max_examples=examples(12),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_call_fits_any_schema(
    client: openai.OpenAI, server: Serving, parameters: dict[str, Any], seed: int
) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    asked = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    (choice,) = ask(client, server, **asked, seed=seed, max_tokens=160, temperature=1.5).choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    found = json.loads(call.function.arguments)
    jsonschema.validate(found, parameters)
    assert [name for name in parameters["properties"] if name in found] == [*found]
