"""One request's tools, put together: what the template is given, what may be drawn, and how the
reply is read. Chat and /v1/responses use it alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from llmserve.core.types import Structured
from llmserve.engines.call_formats import DEFAULT, CallFormat, format_of
from llmserve.engines.tokenizer import Tokenizer
from llmserve.entrypoints.http.errors import invalid
from llmserve.entrypoints.http.tools.choice import ToolChoice
from llmserve.entrypoints.http.tools.grammar import MarkToken, MarkTokens, reply_grammar
from llmserve.entrypoints.http.tools.parser import ReplyParser


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """The tools of one request, in the format of its model."""

    choice: ToolChoice
    format: CallFormat
    by_template: bool
    """Whether the model's own chat template shows tools and calls; else we write them ourselves."""
    marks: MarkTokens = ()
    """Those of the format's marks that are tokens."""

    @property
    def shown(self) -> tuple[Mapping[str, Any], ...]:
        """What the chat template is given (`ChatOptions.tools`)."""
        return tuple(tool.described for tool in self.choice.tools) if self.by_template else ()

    def parser(self) -> ReplyParser | None:
        """A new one for one reply; None where the reply holds no calls."""
        if not self.choice.callable:
            return None
        only = self.choice.mode == "required"
        return ReplyParser(self.format, unmarked=self._silent, calls_only=only)

    @property
    def _silent(self) -> bool:
        return any(mark.silent for mark in self.marks if mark.text == self.format.begin)

    def constraint(self, answer: Structured | None = None) -> Structured | None:
        """What a reply must match, which else would be `answer` (the request's response_format)."""
        if not self.choice.callable:
            return answer
        if self.choice.mode == "required":
            answer = None  # there is nothing but calls
        if answer is not None and answer.kind != "json":
            said = "tools that may be called go with a JSON schema of the reply, and no other form"
            raise invalid("tools", said)
        try:
            text = reply_grammar(self.choice, self.format, answer, self.marks)
        except RecursionError:
            raise invalid("tools", "a schema of tools is nested too deeply") from None
        return Structured("grammar", text)


def tool_use(choice: ToolChoice | None, tokenizer: Tokenizer) -> ToolUse | None:
    """The tools in the format that the tokenizer's chat template asks for, else in the default."""
    if choice is None:
        return None
    found = format_of(tokenizer.chat_template)
    form = found or DEFAULT
    marks = tuple(mark for text in form.marks if (mark := _mark(text, tokenizer)) is not None)
    return ToolUse(choice=choice, format=form, by_template=found is not None, marks=marks)


def _mark(text: str, tokenizer: Tokenizer) -> MarkToken | None:
    """The one token that a text is; what stands before it, as a beginning of all text, has none."""
    *before, last = tokenizer.encode(text)
    said = tokenizer.decode([last])
    alone = not tokenizer.decode(before) and said.strip() in ("", text)
    return MarkToken(text, last, silent=not said.strip()) if alone else None
