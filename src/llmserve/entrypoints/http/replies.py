"""From chunks and outcomes to OpenAI's answers: SSE frames for a stream, one object for a whole.

One event per token per stream is the hot path: everything of a frame but the text is rendered
once per choice, and the text is encoded between the two halves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from llmserve.core.types import Chunk, FinishReason, Outcome, Usage
from llmserve.entrypoints.http.asgi import DONE
from llmserve.entrypoints.http.echo import EchoedPrompt
from llmserve.entrypoints.http.logprobs import (
    PlacedLogprobs,
    chat_logprobs,
    legacy_logprobs,
    prompt_logprobs,
)
from llmserve.entrypoints.http.token_texts import TokenTexts
from llmserve.entrypoints.http.tools.chat_deltas import deltas, read_whole
from llmserve.entrypoints.http.tools.parser import ReplyParser

T = TypeVar("T")
_encode = msgspec.json.encode
_TEXT = "\x00text\x00"
"""Stands for the text while a frame's two halves are rendered."""


def event(content: object) -> bytes:
    return b"data: " + _encode(content) + b"\n\n"


class Head(msgspec.Struct, frozen=True):
    """What all frames of one answer share."""

    id: str
    created: int
    model: str
    fingerprint: str | None = None


def new_head(id: str, model: str, fingerprint: str | None = None) -> Head:
    # OpenAI's `created` is wall time; nothing of ours reckons with it
    return Head(id, int(time.time()), model, fingerprint)


class ByChoice(dict[int, T]):
    """What each choice of an answer keeps from chunk to chunk, made when it is first asked for."""

    def __init__(self, make: Callable[[int], T]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, choice: int) -> T:
        self[choice] = made = self._make(choice)
        return made


class ReplyShape(Protocol):
    """One shape of answer."""

    def frame(self, choice: int, chunk: Chunk) -> bytes:
        """The SSE events of one chunk; empty when it has nothing to send yet."""
        ...

    def end(self, usage: Usage) -> bytes:
        """The last SSE events of a stream."""
        ...

    def whole(self, outcomes: Sequence[Outcome], usage: Usage) -> bytes: ...


class ChatReply:
    def __init__(
        self,
        head: Head,
        texts: TokenTexts,
        *,
        with_usage: bool = False,
        included: bool = False,
        prompt_logprobs: int | None = None,
        parser: Callable[[], ReplyParser | None] | None = None,
    ) -> None:
        """included: the text ends with what ended it. prompt_logprobs: as they were asked for.
        parser: makes one for each choice, where the reply may hold calls."""
        self._head = _fields(head, "chat.completion")
        self._frames = _Frames(_fields(head, "chat.completion.chunk"), with_usage, _chat_choice)
        self._texts, self._included = texts, included
        self._prompt_logprobs = prompt_logprobs
        self._placed = ByChoice(lambda _: self._opened())
        self._begun: set[int] = set()
        self._new_parser = parser or (lambda: None)
        self._parsers = ByChoice(lambda _: self._new_parser())

    def frame(self, choice: int, chunk: Chunk) -> bytes:
        begin = b""
        if choice not in self._begun:
            self._begun.add(choice)
            begin = self._frames.slow(
                {**_chat_choice(choice), "delta": {"role": "assistant", "content": ""}}
            )
        if (parser := self._parsers[choice]) is not None:
            return begin + self._with_calls(choice, chunk, parser)
        if chunk.finish_reason is None and chunk.logprobs is None:
            return begin + self._frames.fast(choice, chunk.text)
        content = {**_chat_choice(choice), "delta": {"content": chunk.text} if chunk.text else {}}
        if chunk.logprobs is not None:
            placed = self._placed[choice].of(chunk)
            if not (placed or chunk.text or chunk.finish_reason):
                return begin
            content["logprobs"] = chat_logprobs(placed, self._texts)
        return begin + self._frames.slow(_ended(content, chunk))

    def _with_calls(self, choice: int, chunk: Chunk, parser: ReplyParser) -> bytes:
        """The events of one chunk: logprobs stand in the first, the reply's end in the last."""
        events = parser.push(chunk.text)
        if chunk.finish_reason is not None:
            events += parser.finish()
        found = deltas(events)
        if chunk.finish_reason is not None or (chunk.logprobs is not None and not found):
            found.append({})
        frames = [{**_chat_choice(choice), "delta": delta} for delta in found]
        if chunk.logprobs is not None:
            placed = self._placed[choice].of(chunk)
            frames[0]["logprobs"] = chat_logprobs(placed, self._texts)
        if chunk.finish_reason is not None:
            _ended(frames[-1], chunk)
            if parser.whole:
                frames[-1]["finish_reason"] = "tool_calls"
        return b"".join(map(self._frames.slow, frames))

    def end(self, usage: Usage) -> bytes:
        return self._frames.end(usage)

    def whole(self, outcomes: Sequence[Outcome], usage: Usage) -> bytes:
        choices = [self._choice(index, outcome) for index, outcome in enumerate(outcomes)]
        answer = {**self._head, "choices": choices, "usage": _usage(usage)}
        if (most := self._prompt_logprobs) is not None:
            found = outcomes[0].prompt_logprobs
            answer["prompt_logprobs"] = prompt_logprobs(found, self._texts, most)
        return _encode(answer)

    def _choice(self, index: int, outcome: Outcome) -> dict[str, Any]:
        parser, finish = self._new_parser(), str(outcome.finish_reason)
        said: dict[str, Any] = {"content": outcome.text}
        if parser is not None:
            said = read_whole(parser, outcome.text)
            finish = "tool_calls" if parser.whole else finish
        return {
            "index": index,
            "message": {"role": "assistant", "refusal": None, **said},
            "logprobs": self._logprobs(outcome),
            "finish_reason": finish,
            "stop_reason": outcome.stop_reason,
        }

    def _logprobs(self, outcome: Outcome) -> object:
        if outcome.logprobs is None:
            return None
        return chat_logprobs(self._opened().of(outcome), self._texts)

    def _opened(self) -> PlacedLogprobs:
        return PlacedLogprobs(self._texts, included=self._included)


class CompletionReply:
    def __init__(
        self,
        head: Head,
        texts: TokenTexts,
        *,
        with_usage: bool = False,
        included: bool = False,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        echo: Sequence[EchoedPrompt] = (),
        n: int = 1,
    ) -> None:
        """included, logprobs and prompt_logprobs: as they were asked for. echo: the prompts, each
        of `n` choices, where the texts are to begin with them."""
        self._head = _fields(head, "text_completion")
        self._frames = _Frames(self._head, with_usage, _text_choice)
        self._texts, self._included = texts, included
        self._logprobs, self._prompt_logprobs = logprobs, prompt_logprobs
        self._echo, self._n = echo, n
        self._placed = ByChoice(self._opened)
        self._begun: set[int] = set()

    def frame(self, choice: int, chunk: Chunk) -> bytes:
        begin = b""
        if self._echo and choice not in self._begun:
            self._begun.add(choice)
            begin = self._begin(choice, chunk)
        if chunk.finish_reason is None and chunk.logprobs is None:
            return begin + self._frames.fast(choice, chunk.text)
        content = {**_text_choice(choice), "text": chunk.text}
        if chunk.logprobs is not None:
            placed = self._placed[choice].of(chunk)
            if not (placed or chunk.text or chunk.finish_reason):
                return begin
            content["logprobs"] = legacy_logprobs(placed, self._texts, self._logprobs or 0)
        return begin + self._frames.slow(_ended(content, chunk))

    def end(self, usage: Usage) -> bytes:
        return self._frames.end(usage)

    def whole(self, outcomes: Sequence[Outcome], usage: Usage) -> bytes:
        choices = [self._choice(index, outcome) for index, outcome in enumerate(outcomes)]
        return _encode({**self._head, "choices": choices, "usage": _usage(usage)})

    def _choice(self, index: int, outcome: Outcome) -> dict[str, Any]:
        echoed = self._echoed(index)
        logprobs = None
        if self._logprobs is not None:
            placed = self._opened(index).of(outcome)
            if echoed is not None and outcome.prompt_logprobs is not None:
                placed = echoed.placed(outcome.prompt_logprobs) + placed
            logprobs = legacy_logprobs(placed, self._texts, self._logprobs)
        choice = {
            "index": index,
            "text": outcome.text if echoed is None else echoed.text + outcome.text,
            "logprobs": logprobs,
            "finish_reason": outcome.finish_reason,
            "stop_reason": outcome.stop_reason,
        }
        if (most := self._prompt_logprobs) is not None:
            found = outcome.prompt_logprobs
            choice["prompt_logprobs"] = prompt_logprobs(found, self._texts, most)
        return choice

    def _begin(self, choice: int, chunk: Chunk) -> bytes:
        """The event that has the prompt."""
        echoed = self._echoed(choice)
        assert echoed is not None  # it is asked for
        content = {**_text_choice(choice), "text": echoed.text}
        if self._logprobs is not None and chunk.prompt_logprobs is not None:
            placed = echoed.placed(chunk.prompt_logprobs)
            content["logprobs"] = legacy_logprobs(placed, self._texts, self._logprobs)
        return self._frames.slow(content)

    def _echoed(self, choice: int) -> EchoedPrompt | None:
        return self._echo[choice // self._n] if self._echo else None

    def _opened(self, choice: int) -> PlacedLogprobs:
        echoed = self._echoed(choice)
        offset = 0 if echoed is None else len(echoed.text)
        return PlacedLogprobs(self._texts, offset=offset, included=self._included)


class _Choice(Protocol):
    def __call__(self, index: int) -> dict[str, Any]: ...


class RunningUsage:
    """A reply whose every event says what has been used so far, at the cost of a rendering each."""

    def __init__(self, reply: ChatReply | CompletionReply, prompt_tokens: Sequence[int]) -> None:
        """prompt_tokens: of each choice's prompt."""
        self._reply = reply
        self._prompt_tokens = prompt_tokens
        self._used = [0] * len(prompt_tokens)
        self.end, self.whole = reply.end, reply.whole

    def frame(self, choice: int, chunk: Chunk) -> bytes:
        self._used[choice] += len(chunk.token_ids)
        used = Usage(self._prompt_tokens[choice], self._used[choice])
        self._reply._frames.also({"usage": _counted(used)})
        return self._reply.frame(choice, chunk)


class _Frames:
    """SSE events of one answer."""

    def __init__(self, head: dict[str, Any], with_usage: bool, choice: _Choice) -> None:
        self._head = head
        self._with_usage = with_usage
        self._rest: dict[str, Any] = {"usage": None} if with_usage else {}
        self._choice = choice
        self._halves: dict[int, tuple[bytes, bytes]] = {}

    def fast(self, choice: int, text: str) -> bytes:
        """A chunk that is only text; none at all while the text is held back."""
        if not text:
            return b""
        halves = self._halves.get(choice)
        if halves is None:
            before, _, after = self.slow(self._choice(choice)).partition(_encode(_TEXT))
            halves = self._halves[choice] = before, after
        return halves[0] + _encode(text) + halves[1]

    def also(self, rest: dict[str, Any]) -> None:
        """What the next events hold besides their choice."""
        self._rest = rest
        self._halves.clear()

    def slow(self, choice: dict[str, Any]) -> bytes:
        return event({**self._head, "choices": [choice], **self._rest})

    def end(self, usage: Usage) -> bytes:
        if not self._with_usage:
            return DONE
        return event({**self._head, "choices": [], "usage": _usage(usage)}) + DONE


def _chat_choice(index: int) -> dict[str, Any]:
    return {"index": index, "delta": {"content": _TEXT}, "logprobs": None, "finish_reason": None}


def _text_choice(index: int) -> dict[str, Any]:
    return {"index": index, "text": _TEXT, "logprobs": None, "finish_reason": None}


def _ended(choice: dict[str, Any], chunk: Chunk) -> dict[str, Any]:
    reason: FinishReason | None = chunk.finish_reason
    if reason in ("stop", "length"):  # anything else is sent as an error
        choice["finish_reason"] = reason
        choice["stop_reason"] = chunk.stop_reason
    return choice


def _fields(head: Head, kind: str) -> dict[str, Any]:
    return {
        "id": head.id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.fingerprint,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        **_counted(usage),
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _counted(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
