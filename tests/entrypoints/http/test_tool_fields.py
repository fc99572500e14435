"""`tools`, `tool_choice` and histories with calls: what is read, and what is 400 by its field."""

from __future__ import annotations

from typing import Any

import pytest

from llmserve.engines.call_formats import HERMES, MISTRAL
from llmserve.entrypoints.http.errors import ApiError
from llmserve.entrypoints.http.tools.choice import ToolChoice, read_tools
from llmserve.entrypoints.http.tools.history import checked_calls, rendered
from llmserve.entrypoints.http.tools.use import ToolUse


def tool(name: Any = "now", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def chosen(**fields: Any) -> ToolChoice:
    found = read_tools(
        fields.get("tools", [tool(), tool("later")]), fields.get("choice"), fields.get("parallel")
    )
    assert found is not None
    return found


def names(choice: ToolChoice) -> list[str]:
    return [one.name for one in choice.callable]


def test_what_may_be_called_follows_from_the_choice() -> None:
    for given in (None, "auto"):
        assert chosen(choice=given).mode == "auto"
        assert names(chosen(choice=given)) == ["now", "later"]
    assert names(chosen(choice="none")) == []
    assert chosen(choice="required").mode == "required"
    named = chosen(choice={"type": "function", "function": {"name": "later"}})
    assert (named.mode, names(named), named.parallel) == ("required", ["later"], False)
    some = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "later"}}]}
    allowed = chosen(choice={"type": "allowed_tools", "allowed_tools": some})
    assert (allowed.mode, names(allowed), allowed.parallel) == ("auto", ["later"], True)
    assert not chosen(parallel=False).parallel


def test_the_flat_shape_of_responses_is_read_alike() -> None:
    flat = [{"type": "function", "name": "now", "parameters": {"type": "object"}, "strict": True}]
    found = read_tools(flat, {"type": "function", "name": "now"}, flat=True)
    assert found is not None
    assert (names(found), found.mode, found.tools[0].strict) == (["now"], "required", True)


def test_no_tools_are_none() -> None:
    assert read_tools(None, None) is None
    assert read_tools([], "auto") is None


@pytest.mark.parametrize(
    ("field", "said", "given"),
    [
        ("tools", "list of functions", {"tools": {}}),
        ("tools", "object of type function", {"tools": [3]}),
        ("tools", "'web_search' is not supported", {"tools": [{"type": "web_search"}]}),
        ("tools", "object with a name", {"tools": [{"type": "function"}]}),
        ("tools", "letters, digits", {"tools": [tool("get weather")]}),
        ("tools", "letters, digits", {"tools": [tool("x" * 65)]}),
        ("tools", "letters, digits", {"tools": [tool(None)]}),
        ("tools", "two functions named 'now'", {"tools": [tool(), tool()]}),
        ("tools", "JSON schema of an object", {"tools": [tool(parameters=3)]}),
        ("tools", "'object'", {"tools": [tool(parameters={"type": "string"})]}),
        ("tools", "description", {"tools": [tool(description=3)]}),
        ("tools", "strict", {"tools": [tool(strict="yes")]}),
        ("tools", "128", {"tools": [tool(f"f{i}") for i in range(129)]}),
        ("tool_choice", "now, later", {"choice": {"type": "function", "function": {"name": "x"}}}),
        ("tool_choice", "letters, digits", {"choice": {"type": "function"}}),
        ("tool_choice", "required", {"choice": "any"}),
        ("tool_choice", "no tools", {"tools": None, "choice": "required"}),
        ("tool_choice", "allowed_tools", {"choice": {"type": "allowed_tools"}}),
        ("parallel_tool_calls", "true, false", {"parallel": "no"}),
    ],
)
def test_what_is_no_tool_is_400_by_its_field(field: str, said: str, given: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match=said) as refused:
        chosen(**given)
    assert (refused.value.status, refused.value.param) == (400, field)


CALL = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}


def test_arguments_reach_the_template_as_an_object() -> None:
    (call,) = checked_calls([CALL])
    assert call["function"] == {"name": "now", "arguments": {"a": 1}}
    (call,) = checked_calls([{"function": {"name": "now", "arguments": ""}}])
    assert call["function"]["arguments"] == {}


@pytest.mark.parametrize(
    "calls", [{}, [3], [{"function": {}}], [{"function": {"name": "n", "arguments": "{"}}],
              [{"function": {"name": "n", "arguments": "[1]"}}], [{**CALL, "id": 3}]],
)  # fmt: skip
def test_a_history_that_cannot_be_read_is_400(calls: Any) -> None:
    with pytest.raises(ApiError, match=r"call|arguments") as refused:
        checked_calls(calls)
    assert refused.value.param == "messages"


def history() -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "when?"},
        {"role": "assistant", "content": "", "tool_calls": checked_calls([CALL])},
        {"role": "tool", "content": "noon", "tool_call_id": "call_1"},
        {"role": "tool", "content": "12:00", "tool_call_id": "call_1"},
    ]


def test_where_the_template_shows_no_tools_calls_are_text() -> None:
    use = ToolUse(choice=chosen(), format=HERMES, by_template=False)
    system, user, said, results = rendered(history(), use, None)
    assert system["role"] == "system"
    assert '"name": "now"' in system["content"]
    assert user == {"role": "user", "content": "when?"}
    assert said["content"] == '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>'
    answers = [f"<tool_response>\n{text}\n</tool_response>" for text in ("noon", "12:00")]
    assert results == {"role": "user", "content": "\n".join(answers)}
    own = rendered([{"role": "system", "content": "be brief"}, *history()], use, None)
    assert own[0]["content"].startswith("be brief\n\nYou may call")
    roles = [turn["role"] for turn in rendered(history(), None, None)]
    assert roles == ["user", "assistant", "user"]


def test_where_the_template_shows_tools_calls_stay_as_they_are() -> None:
    use = ToolUse(choice=chosen(), format=HERMES, by_template=True)
    assert rendered(history(), use, "{{ tools }} tool_calls") == history()
    assert rendered(history(), None, "{{ tools }} tool_calls") == history()
    short = ToolUse(choice=chosen(), format=MISTRAL, by_template=True)
    _, said, *results = rendered(history(), short, "")
    assert said["tool_calls"][0]["id"] == results[0]["tool_call_id"] == "0000call1"
