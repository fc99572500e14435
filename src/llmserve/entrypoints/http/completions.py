"""POST /v1/chat/completions and /v1/completions: from a body to streams, and back to the client.

The handler owns the streams, not the response body: whatever becomes of the response, its
`finally` cancels them, and each slot is free.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing

import msgspec
from starlette.types import Receive, Scope, Send

from llmserve.core.types import Outcome, Request, SamplingParams, Usage
from llmserve.entrypoints.http import prompts, protocol
from llmserve.entrypoints.http.asgi import DONE, JsonAnswer, read_json, unless_gone
from llmserve.entrypoints.http.caller import sender
from llmserve.entrypoints.http.errors import (
    SERVING_ERRORS,
    ClientGone,
    aborted,
    as_api_error,
    stopping,
)
from llmserve.entrypoints.http.merged_streams import arrivals
from llmserve.entrypoints.http.protocol import ChatBody, CompletionBody
from llmserve.entrypoints.http.response_cache import asks_anew, looked
from llmserve.entrypoints.http.responses import ChatReply, CompletionReply, Head, ReplyShape
from llmserve.entrypoints.http.state import EndpointState
from llmserve.entrypoints.http.structured import check_supported
from llmserve.serving.requests import Sender, check_tokens, make_request
from llmserve.serving.stream import Stream


class CompletionCall(msgspec.Struct, frozen=True):
    """One HTTP request, understood."""

    id: str
    prompts: tuple[prompts.Ids, ...]
    sampling: SamplingParams
    body: ChatBody | CompletionBody
    sender: Sender
    arrival: float
    anew: bool
    """Whether no cached reply will do."""

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.body.choices

    def request(self, choice: int) -> Request:
        """The sequence of one choice; the choices of one prompt follow each other."""
        prompt, nth = divmod(choice, self.body.choices)
        return make_request(
            self.id if self.choices == 1 else f"{self.id}-{choice}",
            self.prompts[prompt],
            protocol.of_choice(self.sampling, nth),
            arrival=self.arrival,
            sender=self.sender,
            choices=self.choices if choice == 0 else 0,
        )

    def usage(self, streams: Sequence[Stream]) -> Usage:
        """Each prompt counts once, however many choices were made of it."""
        firsts = [stream.usage for stream in streams[:: self.body.choices]]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in firsts),
            completion_tokens=sum(stream.usage.completion_tokens for stream in streams),
            cached_tokens=sum(usage.cached_tokens for usage in firsts),
        )


class Generation:
    """One of the two routes, as an ASGI application; `kind` is the body it takes."""

    def __init__(self, served: EndpointState, kind: type[ChatBody] | type[CompletionBody]) -> None:
        self._served = served
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = JsonAnswer(send)
        try:
            raw = await read_json(scope, receive, self._served.context)
            await unless_gone(receive, self._answer(scope, raw, answer))
        except ClientGone:
            return
        except SERVING_ERRORS as error:
            await answer.fail(as_api_error(error))
        except asyncio.CancelledError:  # only Server.stop cancels what it serves
            await answer.fail(stopping())

    async def _answer(self, scope: Scope, raw: bytes, answer: JsonAnswer) -> None:
        call = await self._understand(scope, raw)
        streams: list[Stream] = []
        try:
            for choice in range(call.choices):
                stream, found = self._served.cache.submit(call.request(choice), anew=call.anew)
                streams.append(stream)
                looked(answer.headers, found)
            if call.body.stream:
                await self._stream(call, streams, answer)
            else:
                outcomes = [_complete(await stream.collect()) for stream in streams]
                await answer.whole(self._reply(call).whole(outcomes, call.usage(streams)))
        finally:
            for stream in streams:
                stream.cancel()

    async def _understand(self, scope: Scope, raw: bytes) -> CompletionCall:
        arrival = self._served.service.clock.now()
        body = protocol.decode(raw, self._kind)
        info = self._served.check_model(body.model)
        tokenizer = self._served.tokenizer
        if isinstance(body, ChatBody):
            protocol.check_shape(body, 1)
            ids = [await prompts.chat_ids(tokenizer, info, body.messages)]
        else:
            texts = prompts.prompts_of(body)
            protocol.check_shape(body, len(texts))
            ids = await prompts.all_ids(tokenizer, info, texts)
        check_supported(body, self._served.service.engine)
        sampling = protocol.sampling(body, prompts.reply_tokens(ids, body, info))
        check_tokens(sampling, info)
        await self._served.service.check_form(sampling)
        prefix = "chatcmpl" if isinstance(body, ChatBody) else "cmpl"
        return CompletionCall(
            self._served.service.new_id(prefix), tuple(ids), sampling, body,
            sender(scope, body), arrival, asks_anew(scope),
        )  # fmt: skip

    def _reply(self, call: CompletionCall) -> ReplyShape:
        # OpenAI's `created` is wall time; nothing of ours reckons with it
        head = Head(call.id, int(time.time()), self._served.info.model_id)
        kind = ChatReply if isinstance(call.body, ChatBody) else CompletionReply
        return kind(head, self._served.texts, with_usage=call.body.include_usage)

    async def _stream(
        self, call: CompletionCall, streams: Sequence[Stream], answer: JsonAnswer
    ) -> None:
        reply = self._reply(call)
        async with aclosing(arrivals(streams)) as batches:
            async for batch in batches:
                frames = b"".join(reply.frame(choice, chunk) for choice, chunk in batch)
                if frames:
                    await answer.events(frames)
        for stream in streams:
            _complete(stream.outcome)
        end = reply.usage_frame(call.usage(streams)) if call.body.include_usage else b""
        await answer.events(end + DONE, more=False)


def _complete(outcome: Outcome | None) -> Outcome:
    """A reply that was stopped halfway from our side is none."""
    if outcome is None or outcome.finish_reason not in ("stop", "length"):
        raise aborted()
    return outcome
