"""The answer of /v1/responses: one object, or the events that end with it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from llmserve.core.types import Chunk, Outcome, SamplingParams, Usage
from llmserve.entrypoints.http.errors import ApiError
from llmserve.entrypoints.http.logprobs import PlacedLogprobs, chat_logprobs
from llmserve.entrypoints.http.openai_responses.output_items import Event, Fields, OutputItems
from llmserve.entrypoints.http.replies import Head
from llmserve.entrypoints.http.token_texts import TokenTexts
from llmserve.entrypoints.http.tools.parser import (
    ArgumentsDelta,
    CallBegun,
    CallEnded,
    CallEvent,
    ReplyParser,
    TextDelta,
)

_encode = msgspec.json.encode
_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
_REPEATED = ("instructions", "max_output_tokens", "max_tool_calls", "prompt_cache_key",
             "safety_identifier", "user")  # fmt: skip


class ResponsesReply:
    """A `ReplyShape`; there is one choice."""

    def __init__(
        self,
        head: Head,
        asked: Mapping[str, Any],
        texts: TokenTexts,
        parser: ReplyParser | None = None,
        *,
        included: bool = False,
    ) -> None:
        """asked: what the answer repeats, from `repeated`. parser: where it may hold calls.
        included: the text ends with what ended it."""
        self._base = {"id": head.id, "object": "response", "created_at": head.created,
                      "model": head.model, **asked}  # fmt: skip
        self._texts = texts
        self._placed = PlacedLogprobs(texts, included=included)
        self._parser = parser
        self._output = OutputItems(head.id.removeprefix("resp_"))
        self._sequence = 0
        self._reason: str | None = None

    def frame(self, choice: int, chunk: Chunk) -> bytes:
        events: list[Event] = []
        if not self._sequence:
            begun = self._response("in_progress")
            events = [
                {"type": "response.created", "response": begun},
                {"type": "response.in_progress", "response": begun},
            ]
        events += self._read(chunk)
        self._reason = chunk.finish_reason
        return self._frames(events)

    def end(self, usage: Usage) -> bytes:
        events = self._closed(self._reason)
        final = self._final(self._reason, usage)
        return self._frames([*events, {"type": f"response.{final['status']}", "response": final}])

    def whole(self, outcomes: Sequence[Outcome], usage: Usage) -> bytes:
        (outcome,) = outcomes
        self._read(outcome)
        self._closed(outcome.finish_reason)
        return _encode(self._final(outcome.finish_reason, usage))

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that an error ends."""
        events = self._output.close("incomplete")
        code = _CODES.get(error.status, "server_error")
        final = self._response("failed") | {"error": {"code": code, "message": error.message}}
        return self._frames([*events, {"type": "response.failed", "response": final}])

    def _read(self, sent: Chunk | Outcome) -> list[Event]:
        """More of the reply. Log-probabilities stand with the first text that came with them."""
        logprobs = self._logprobs(sent)
        if self._parser is not None:
            return self._add(self._parser.push(sent.text), logprobs)
        return self._output.text(sent.text, logprobs) if sent.text or logprobs else []

    def _add(self, read: Iterable[CallEvent], logprobs: Sequence[Fields] = ()) -> list[Event]:
        output, events = self._output, list[Event]()
        for one in read:
            match one:
                case TextDelta(text):
                    events += output.text(text, logprobs)
                    logprobs = ()
                case CallBegun(_, id, name):
                    events += output.begin_call(id, name)
                case ArgumentsDelta(_, text):
                    events += output.arguments(text)
                case CallEnded():
                    events += output.close()
        return events

    def _closed(self, reason: str | None) -> list[Event]:
        begun = [] if self._parser is None else self._add(self._parser.finish())
        begun += [] if self._output.items else self._output.begin_message()
        return begun + self._output.close("incomplete" if self._cut(reason) else "completed")

    def _final(self, reason: str | None, usage: Usage) -> dict[str, Any]:
        if self._cut(reason):
            cut = {"incomplete_details": {"reason": "max_output_tokens"}}
            return self._response("incomplete") | cut | {"usage": _usage(usage)}
        done = {"completed_at": int(time.time()), "usage": _usage(usage)}
        return self._response("completed") | done

    def _cut(self, reason: str | None) -> bool:
        """Whether it was cut off; calls that are whole are an answer, as in a chat."""
        return reason == "length" and not (self._parser is not None and self._parser.whole)

    def _response(self, status: str) -> dict[str, Any]:
        return {
            **self._base,
            "status": status,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "output": list(self._output.items),
            "usage": None,
        }

    def _logprobs(self, sent: Chunk | Outcome) -> Sequence[Fields]:
        found: list[Fields] = []
        if sent.logprobs is not None:
            found = chat_logprobs(self._placed.of(sent), self._texts)["content"]
        return found

    def _frames(self, events: Iterable[Event]) -> bytes:
        frames = b""
        for event in events:
            kind: str = event["type"]
            numbered = {**event, "sequence_number": self._sequence}
            frames += b"event: " + kind.encode() + b"\ndata: " + _encode(numbered) + b"\n\n"
            self._sequence += 1
        return frames


def repeated(given: Mapping[str, Any], sampling: SamplingParams) -> dict[str, Any]:
    """What the answer says of the request. That nothing is stored is said whatever was asked."""
    text = given.get("text") or {}
    return {
        **{name: given.get(name) for name in _REPEATED},
        "background": False,
        "metadata": given.get("metadata") or {},
        "parallel_tool_calls": given.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": sampling.temperature,
        "text": {"format": text.get("format") or {"type": "text"}},
        "tool_choice": given.get("tool_choice") or "auto",
        "tools": given.get("tools") or [],
        "top_logprobs": sampling.logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
