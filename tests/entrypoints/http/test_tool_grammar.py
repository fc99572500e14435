"""What a reply with tools may be, token by token: free up to a call's mark, and held from there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from llmserve.core.types import Structured
from llmserve.engines.call_formats import HERMES, LLAMA, MISTRAL, CallFormat
from llmserve.engines.guided.grammars import check, matcher, shortest
from llmserve.engines.token_bytes import byte_characters
from llmserve.engines.torch.sampling.guided_decoding import Grammars
from llmserve.entrypoints.http.errors import ApiError
from llmserve.entrypoints.http.tools.choice import ToolChoice, read_tools
from llmserve.entrypoints.http.tools.grammar import MarkToken
from llmserve.entrypoints.http.tools.parser import CallEnded
from llmserve.entrypoints.http.tools.use import ToolUse, tool_use
from support.scripted import ByteTokenizer
from support.token_streams import BackendTokenizer

BYTES = LLTokenizer("byte")
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FORMATS = [HERMES, LLAMA, MISTRAL]


def choice(mode: str = "auto", **more: Any) -> ToolChoice:
    tools = [
        {"type": "function", "function": {"name": "weather", "parameters": CITY, **more}},
        {"type": "function", "function": {"name": "now"}},
    ]
    found = read_tools(tools, mode)
    assert found is not None
    return found


def use(given: ToolChoice, form: CallFormat, **more: Any) -> ToolUse:
    return ToolUse(choice=given, format=form, by_template=False, **more)


def takes(given: ToolUse, text: str, answer: Structured | None = None) -> bool:
    """Whether a reply may be just that."""
    form = given.constraint(answer)
    assert form is not None
    found = matcher(form, BYTES)
    return bool(found.consume_tokens([*text.encode()]) and found.is_accepting())


WEATHER = {"name": "weather", "arguments": {"city": "Oslo"}}
NOW: dict[str, Any] = {"name": "now", "arguments": {}}


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_auto_takes_any_text_and_calls_that_fit(form: CallFormat) -> None:
    auto = use(choice(), form)
    assert takes(auto, "")
    assert takes(auto, "It rains.\nA lot.")
    assert takes(auto, form.written([WEATHER]))
    assert takes(auto, form.written([WEATHER, NOW])) == form.several
    assert takes(auto, "Let me look. " + form.written([NOW]))  # Llama's is text, as it comes late
    assert not takes(auto, form.written([{"name": "other", "arguments": {}}]))
    assert not takes(auto, form.written([{"name": "weather", "arguments": {}}]))
    assert not takes(auto, form.written([{"name": "now", "arguments": {"x": 1}}]))


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_required_takes_calls_and_nothing_else(form: CallFormat) -> None:
    required = use(choice("required"), form)
    assert not takes(required, "")
    assert not takes(required, "It rains.")
    assert takes(required, form.written([WEATHER]))
    assert not takes(required, "Look: " + form.written([WEATHER]))


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_the_shortest_reply_of_a_required_call_is_one(form: CallFormat) -> None:
    constraint = use(choice("required"), form).constraint()
    assert constraint is not None
    found = shortest(constraint)
    assert found is not None
    assert bytes(found).decode() == form.written([NOW])


def test_a_named_choice_takes_one_call_of_that_name() -> None:
    tools = [tool.described for tool in choice().tools]
    named = read_tools(tools, {"type": "function", "function": {"name": "now"}})
    assert named is not None
    assert takes(use(named, HERMES), HERMES.written([NOW]))
    assert not takes(use(named, HERMES), HERMES.written([NOW, NOW]))
    assert not takes(use(named, HERMES), HERMES.written([WEATHER]))


def test_none_leaves_the_reply_as_it_was() -> None:
    none = use(choice("none"), HERMES)
    answer = Structured("regex", "a+")
    assert none.constraint() is None
    assert none.constraint(answer) == answer
    assert none.parser() is None


def test_a_schema_of_the_reply_goes_with_tools_that_may_be_called() -> None:
    answer = Structured("json", json.dumps(CITY))
    assert takes(use(choice(), HERMES), '{"city": "Oslo"}', answer)
    assert takes(use(choice(), HERMES), HERMES.written([NOW]), answer)
    assert not takes(use(choice(), HERMES), "It rains.", answer)
    assert not takes(use(choice("required"), HERMES), '{"city": "Oslo"}', answer)
    with pytest.raises(ApiError, match="no other form"):
        use(choice(), HERMES).constraint(Structured("regex", "a+"))


def test_arguments_are_closed_unless_the_tool_says_otherwise() -> None:
    more = HERMES.written([{"name": "weather", "arguments": {"city": "Oslo", "mood": 1}}])
    assert not takes(use(choice(), HERMES), more)
    assert not takes(use(choice(strict=True), HERMES), more)
    assert takes(use(choice(strict=False), HERMES), more)


class Marked(BackendTokenizer):
    """A tokenizer of bytes, with a token for Mistral's mark that has no text."""

    def __init__(self, *shown: str) -> None:
        """`shown`: further tokens, which have their text."""
        vocab = {char: place for place, char in enumerate(byte_characters())}
        backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(["[TOOL_CALLS]", "<end>"])
        backend.add_tokens([*shown])
        super().__init__(backend, "{{ tools }} [AVAILABLE_TOOLS] [TOOL_CALLS]")


def mistral_mark(token: int) -> tuple[MarkToken]:
    return (MarkToken("[TOOL_CALLS]", token, True),)


def test_a_mark_that_is_a_token_without_text_is_one_in_the_grammar_and_none_in_the_text() -> None:
    tokenizer = Marked()
    found = tool_use(choice(), tokenizer)
    assert found == ToolUse(
        choice=choice(), format=MISTRAL, by_template=True, marks=mistral_mark(256)
    )
    constraint, parser = found.constraint(), found.parser()
    assert constraint is not None
    assert parser is not None
    check(constraint)
    check(use(choice("required"), MISTRAL, marks=mistral_mark(128_010)).constraint() or constraint)
    follows = Grammars(tokenizer.backend, 258, {257}).open(constraint, 200)
    text = MISTRAL.written([WEATHER, NOW])
    for token in tokenizer.encode(f"I look.{text}"):
        assert follows.bits()[token >> 3] >> (token & 7) & 1, token
        follows.push(token)
    assert follows.complete
    events = parser.push(tokenizer.decode(tokenizer.encode(f"I look.{text}")))
    ended = [(event.name, event.arguments) for event in events if isinstance(event, CallEnded)]
    assert ended == [("weather", '{"city": "Oslo"}'), ("now", "{}")]


@pytest.mark.parametrize("spelled", [False, True])
@pytest.mark.parametrize("asked", ["auto", "required"])
def test_a_mark_that_is_a_token_with_text_may_be_that_token_or_be_spelled(
    spelled: bool, asked: str
) -> None:
    """As in Qwen's vocabulary, where the marks are tokens of their own."""
    tokenizer = Marked("<tool_call>", "</tool_call>")
    tokenizer.chat_template = "{{ tools }} <tool_call>"
    found = tool_use(choice(asked), tokenizer)
    assert found is not None
    begin, end = MarkToken("<tool_call>", 258, False), MarkToken("</tool_call>", 259, False)
    assert found.marks == (begin, end)
    constraint = found.constraint()
    assert constraint is not None
    follows = Grammars(tokenizer.backend, 260, {257}).open(constraint, 400)
    before = "I look." if asked == "auto" else ""
    written = HERMES.written([WEATHER, NOW])
    ids = tokenizer.encode(before)
    if spelled and asked == "auto":
        ids += [tokenizer.encode(letter)[0] for letter in HERMES.begin]
        ids += tokenizer.encode(written.removeprefix(HERMES.begin))
    else:
        ids += tokenizer.encode(written)
    for token in ids:
        assert follows.bits()[token >> 3] >> (token & 7) & 1, tokenizer.decode([token])
        follows.push(token)
    parser = found.parser()
    assert parser is not None
    events = parser.push(tokenizer.decode(ids))
    assert [event.name for event in events if isinstance(event, CallEnded)] == ["weather", "now"]


def test_without_a_format_of_its_own_a_model_is_shown_the_default() -> None:
    assert tool_use(choice(), ByteTokenizer()) == use(choice(), HERMES)
    assert tool_use(None, ByteTokenizer()) is None
