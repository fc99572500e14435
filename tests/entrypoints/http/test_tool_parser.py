"""Calls in a reply's text: read alike however the text is cut, and only where a call is one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.engines.call_formats import HERMES, LLAMA, MISTRAL, CallFormat, format_of
from llmserve.entrypoints.http.tools.parser import (
    ArgumentsDelta,
    CallBegun,
    CallEnded,
    CallEvent,
    ReplyParser,
    TextDelta,
)

FORMATS = [HERMES, LLAMA, MISTRAL]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
CALLS = st.lists(
    st.fixed_dictionaries({
        "name": st.from_regex(r"[a-zA-Z0-9_-]{1,12}", fullmatch=True),
        "arguments": st.dictionaries(st.text(max_size=6), VALUES, max_size=3),
    }),
    max_size=3,
)  # fmt: skip


def parser(form: CallFormat, **more: Any) -> ReplyParser:
    ids = count()
    return ReplyParser(form, lambda: f"call_{next(ids)}", **more)


def read(form: CallFormat, pieces: Iterable[str], **more: Any) -> tuple[list[CallEvent], bool]:
    made = parser(form, **more)
    events = [event for piece in pieces for event in made.push(piece)]
    return joined(events + made.finish()), made.whole


def joined(events: list[CallEvent]) -> list[CallEvent]:
    """Deltas of one kind that follow each other, as one."""
    found: list[CallEvent] = []
    for event in events:
        before = found[-1] if found else None
        match before, event:
            case TextDelta(said), TextDelta(more):
                found[-1] = TextDelta(said + more)
            case ArgumentsDelta(index, said), ArgumentsDelta(_, more):
                found[-1] = ArgumentsDelta(index, said + more)
            case _:
                found.append(event)
    return found


def events_of(said: str, calls: list[dict[str, Any]]) -> list[CallEvent]:
    found: list[CallEvent] = [TextDelta(said)] if said.strip() or (said and not calls) else []
    for index, call in enumerate(calls):
        text, id = json.dumps(call["arguments"], ensure_ascii=False), f"call_{index}"
        found += [
            CallBegun(index, id, call["name"]),
            ArgumentsDelta(index, text),
            CallEnded(index, id, call["name"], text),
        ]
    return found


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@given(data=st.data())
def test_any_cut_of_a_text_gives_the_same_events(form: CallFormat, data: st.DataObject) -> None:
    calls = data.draw(CALLS)[: None if form.several else 1]
    said = data.draw(st.text(max_size=12).filter(lambda text: "<tool_call>" not in text))
    if not form.begin:  # a call is a whole reply
        said = "" if calls else said.lstrip("{ \n")
    text = said + (form.written(calls) if calls else "")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole, complete = read(form, [text])
    assert read(form, pieces) == read(form, text) == (whole, complete)
    if calls:
        assert whole == events_of(said, calls)
        assert complete
    else:
        assert "".join(e.text for e in whole if isinstance(e, TextDelta)).strip() == said.strip()


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_a_call_cut_short_is_not_whole_and_its_markup_is_no_text(form: CallFormat) -> None:
    text = form.written([{"name": "now", "arguments": {"zone": '}\\"{'}}])
    for end in range(len(text)):
        events, whole = read(form, [text[:end]])
        assert not any(isinstance(event, CallEnded) for event in events) or end >= len(text) - 15
        if end > len(form.begin):
            assert not any(isinstance(event, TextDelta) for event in events), text[:end]
        assert not whole or any(isinstance(event, CallEnded) for event in events)


def test_arguments_leave_as_they_come_and_not_at_the_end() -> None:
    made = parser(HERMES)
    assert made.push('<tool_call>\n{"name": "now", "argu') == []
    assert made.push('ments": {"zo') == [CallBegun(0, "call_0", "now"), ArgumentsDelta(0, '{"zo')]
    assert made.push('ne": "x') == [ArgumentsDelta(0, 'ne": "x')]


def test_a_mark_that_has_no_text_is_missed_by_nobody() -> None:
    text = 'well [{"name": "now", "arguments": {}}]'
    assert read(MISTRAL, text, unmarked=True) == (
        events_of("well ", [{"name": "now", "arguments": {}}]), True,
    )  # fmt: skip


def test_text_that_only_looks_like_a_mark_is_text() -> None:
    for text in ("<tool_cal", "a <b> <tool_x>", "<", "[TOOL_CALLS"):
        assert read(HERMES, text) == ([TextDelta(text)], False)
    assert read(HERMES, "<tool_cal", calls_only=True) == ([], False)


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (None, None),
        ("{{ messages }}", None),
        ("{% if tools %}<tool_call>{% endif %}", HERMES),
        ("[AVAILABLE_TOOLS]{{ tools }}[/AVAILABLE_TOOLS] [TOOL_CALLS]", MISTRAL),
        ('{{ tools }} {"name": 1, "parameters": 2} <|eot_id|>', LLAMA),
        ("{{ tools }} <function=", None),
    ],
)
def test_the_format_is_what_the_template_shows(
    template: str | None, form: CallFormat | None
) -> None:
    assert format_of(template) == form
