"""Calls in a reply's text, read as the text comes. Pure.

However a text is cut into pieces, the joined events are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal
from uuid import uuid4

import msgspec

from llmserve.engines.call_formats import CallFormat


class TextDelta(msgspec.Struct, frozen=True):
    """More of the text outside calls."""

    text: str


class CallBegun(msgspec.Struct, frozen=True):
    """A call got its name."""

    index: int
    """Counts the calls of one reply from 0."""
    id: str
    name: str


class ArgumentsDelta(msgspec.Struct, frozen=True):
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


class CallEnded(msgspec.Struct, frozen=True):
    """The arguments are whole."""

    index: int
    id: str
    name: str
    arguments: str


CallEvent = TextDelta | CallBegun | ArgumentsDelta | CallEnded


def new_call_id() -> str:
    return f"call_{uuid4().hex[:24]}"


class ReplyParser:
    """Reads one reply: push its text piece by piece, and finish it."""

    def __init__(
        self,
        form: CallFormat,
        new_id: Callable[[], str] = new_call_id,
        *,
        unmarked: bool = False,
        calls_only: bool = False,
    ) -> None:
        """`unmarked`: the text lacks the format's mark, which is a token that has no text.
        `calls_only`: the reply holds nothing but calls, so that a mark cut short is no text."""
        self.calls_only = calls_only
        self._begin = form.opening if unmarked else form.begin
        self._cut = 0 if unmarked else len(form.begin)
        self._new_id = new_id
        key = re.escape(form.arguments_key)
        self._header = re.compile(rf'\s*\[?\s*\{{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"{key}"\s*:')
        self._state: Literal["text", "header", "arguments", "between"] = "text"
        self._held = ""
        """Text whose meaning is not certain yet."""
        self._spoken = False
        self._call = CallBegun(-1, "", "")
        self._arguments = _JsonText()
        self.calls = 0
        """Calls that have begun."""

    @property
    def whole(self) -> bool:
        """Whether there is a call, and none that was cut off."""
        return self.calls > 0 and self._state == "between"

    def push(self, text: str) -> list[CallEvent]:
        """The events that are certain now."""
        self._held += text
        events: list[CallEvent] = []
        while self._held:
            before = self._state, len(self._held)
            self._advance(events)
            if (self._state, len(self._held)) == before:
                break
        return events

    def finish(self) -> list[CallEvent]:
        """The last events of a reply that has ended, whether or not it was cut off: text that was
        held back. The beginning of a call that has no name yet is dropped."""
        held, self._held = self._held, ""
        speech = self._state == "text" and not self.calls_only
        if speech and held and (self._spoken or held.strip()):
            return [TextDelta(held)]
        return []

    def _advance(self, events: list[CallEvent]) -> None:
        match self._state:
            case "text":
                self._read_text(events)
            case "header":
                self._read_header(events)
            case "arguments":
                self._read_arguments(events)
            case "between":
                _, brace, rest = self._held.partition("{")
                self._held = brace + rest
                if brace:
                    self._state = "header"

    def _read_text(self, events: list[CallEvent]) -> None:
        begin = self._begin
        if not begin:
            self._read_start(events)
            return
        place = self._held.find(begin)
        if place >= 0:
            said, self._held = self._held[:place], self._held[place + self._cut :]
            self._state = "header"
        else:
            certain = len(self._held) - _overlap(self._held, begin)
            said, self._held = self._held[:certain], self._held[certain:]
        if self._spoken or said.strip():
            self._spoken = True
            events.extend([TextDelta(said)] if said else [])
        elif place < 0:
            self._held = said + self._held  # blanks before a call are no text

    def _read_start(self, events: list[CallEvent]) -> None:
        """Without a mark, a reply that starts with a brace is a call."""
        if self._spoken or ((blank := self._held.lstrip()) and not blank.startswith("{")):
            self._spoken = True
            events.append(TextDelta(self._held))
            self._held = ""
        elif blank:
            self._state = "header"

    def _read_header(self, events: list[CallEvent]) -> None:
        found = self._header.match(self._held)
        if found is None:
            return
        self._held = self._held[found.end() :]
        self._call = CallBegun(self.calls, self._new_id(), found[1])
        self._arguments = _JsonText()
        self.calls += 1
        self._state = "arguments"
        events.append(self._call)

    def _read_arguments(self, events: list[CallEvent]) -> None:
        if not self._arguments.begun:  # blanks before them are none of theirs
            self._held = self._held.lstrip()
        taken = self._arguments.take(self._held)
        piece, self._held = self._held[:taken], self._held[taken:]
        call = self._call
        if piece:
            events.append(ArgumentsDelta(call.index, piece))
        if self._arguments.closed:
            events.append(CallEnded(call.index, call.id, call.name, self._arguments.text))
            self._state = "between"


class _JsonText:
    """The text of one JSON object, as far as it has come."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._depth = 0
        self._quoted = self._escaped = False
        self.closed = False

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def begun(self) -> bool:
        return bool(self._pieces)

    def take(self, text: str) -> int:
        """How many characters of `text` belong to it."""
        for place, char in enumerate(text):
            if self._quoted:
                self._quoted = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            elif char == '"':
                self._quoted = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    self.closed = True
                    return self._keep(text[: place + 1])
        return self._keep(text)

    def _keep(self, text: str) -> int:
        self._pieces += [text] if text else []
        return len(text)


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
