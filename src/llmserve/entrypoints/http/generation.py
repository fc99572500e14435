"""What all routes that generate have in common: from a body to streams, and back to the client.

The handler owns the streams, not the response body: whatever becomes of the response, its
`finally` cancels them, and each slot is free.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import msgspec
from starlette.types import Receive, Scope, Send

from llmserve.core.types import Outcome, ParamError, Request, SamplingParams, Usage
from llmserve.entrypoints.http.asgi import JsonAnswer, read_json
from llmserve.entrypoints.http.caller import Claims, sender
from llmserve.entrypoints.http.errors import (
    SERVING_ERRORS,
    ApiError,
    ClientGone,
    aborted,
    as_api_error,
    invalid,
    stopping,
)
from llmserve.entrypoints.http.leaving import exchange_of, unless_gone
from llmserve.entrypoints.http.prompts import Ids
from llmserve.entrypoints.http.protocol import of_choice
from llmserve.entrypoints.http.pushed_events import PushedEvents
from llmserve.entrypoints.http.replies import ReplyShape
from llmserve.entrypoints.http.response_cache import asks_anew, looked
from llmserve.entrypoints.http.state import EndpointState
from llmserve.serving.requests import Sender, check_tokens, make_request
from llmserve.serving.stream import Stream
from llmserve.serving.tokenize import tokenised

log = logging.getLogger(__name__)

_AS_CHARACTERS = 16
"""To write the log-probabilities of a token takes as long as to tokenise so many characters."""


class Understood(msgspec.Struct, frozen=True, kw_only=True):
    """A body, read: what is asked of the engine, and how the client wants it."""

    id: str
    prompts: tuple[Ids, ...]
    sampling: SamplingParams
    claims: Claims
    reply: ReplyShape
    n: int = 1
    """Choices of each prompt."""
    stream: bool = False
    form_field: str = "structured_outputs"
    """The field of the body that says what the reply must match."""
    failed: Callable[[ApiError], bytes] | None = None
    """The last event of a stream that an error ends; OpenAI's error object where it is None."""


class Call(msgspec.Struct, frozen=True):
    """One HTTP request on its way to the engine."""

    asked: Understood
    sender: Sender
    arrival: float
    anew: bool
    """Whether no cached reply will do."""

    @property
    def choices(self) -> int:
        return len(self.asked.prompts) * self.asked.n

    def request(self, choice: int) -> Request:
        """The sequence of one choice; the choices of one prompt follow each other."""
        asked = self.asked
        prompt, nth = divmod(choice, asked.n)
        return make_request(
            asked.id if self.choices == 1 else f"{asked.id}-{choice}",
            asked.prompts[prompt],
            of_choice(asked.sampling, nth),
            arrival=self.arrival,
            sender=self.sender,
            choices=self.choices if choice == 0 else 0,
        )

    def usage(self, streams: Sequence[Stream]) -> Usage:
        """Each prompt counts once, however many choices were made of it."""
        firsts = [stream.usage for stream in streams[:: self.asked.n]]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in firsts),
            completion_tokens=sum(stream.usage.completion_tokens for stream in streams),
            cached_tokens=sum(usage.cached_tokens for usage in firsts),
        )


class GeneratingRoute(ABC):
    """One route that generates, as an ASGI application."""

    def __init__(self, served: EndpointState) -> None:
        self.served = served

    @abstractmethod
    async def understand(self, raw: bytes) -> Understood:
        """Read the body; ApiError or ParamError where it asks for what cannot be."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = JsonAnswer(send, exchange_of(scope))
        try:
            raw = await read_json(scope, receive, self.served.context)
            await unless_gone(scope, receive, self._answer(scope, raw, answer))
        except ClientGone:
            return
        except SERVING_ERRORS as error:
            await answer.fail(as_api_error(error))
        except asyncio.CancelledError:  # only Server.stop cancels what it serves
            await answer.fail(stopping())
        except Exception as error:
            log.exception("POST %s failed", scope["path"])
            await answer.fail(as_api_error(error))
            raise  # the connection is closed

    async def _answer(self, scope: Scope, raw: bytes, answer: JsonAnswer) -> None:
        answer.headers |= self.served.check_fields(scope["path"], raw)
        call = await self._call(scope, raw)
        answer.failed = call.asked.failed or answer.failed
        streams: list[Stream] = []
        try:
            for choice in range(call.choices):
                stream, found = self.served.cache.submit(call.request(choice), anew=call.anew)
                streams.append(stream)
                looked(answer.headers, found)
            if call.asked.stream:
                await self._stream(call, streams, answer)
            else:
                outcomes = [_complete(await stream.collect()) for stream in streams]
                await answer.whole(await _rendered(call, outcomes, streams))
        except ParamError as error:  # what only the engine could see of a schema
            if error.param == "structured_outputs":
                raise invalid(call.asked.form_field, error) from None
            raise
        finally:
            for stream in streams:
                stream.cancel()

    async def _call(self, scope: Scope, raw: bytes) -> Call:
        arrival = self.served.service.clock.now()
        asked = await self.understand(raw)
        check_tokens(asked.sampling, self.served.info)
        try:
            await self.served.service.check_form(asked.sampling)
        except ParamError as error:
            raise invalid(asked.form_field, error) from None
        return Call(asked, sender(scope, asked.claims), arrival, asks_anew(scope))

    async def _stream(self, call: Call, streams: Sequence[Stream], answer: JsonAnswer) -> None:
        reply = call.asked.reply
        newest = await PushedEvents(streams, reply, answer, self.served.pacer).send_all()
        try:
            for stream in streams:
                _complete(stream.outcome)
        except ApiError:
            if newest:
                await answer.events(newest)
            raise
        await answer.events(newest + reply.end(call.usage(streams)), more=False)


async def _rendered(
    call: Call, outcomes: Sequence[Outcome], streams: Sequence[Stream]
) -> bytes:
    """The whole answer. Log-probabilities of long prompts are written beside the streams."""
    usage = call.usage(streams)
    scored = sum([len(outcome.prompt_logprobs or ()) for outcome in outcomes])
    if not scored:
        return call.asked.reply.whole(outcomes, usage)
    return await tokenised(
        _AS_CHARACTERS * scored, lambda whole: whole(outcomes, usage), call.asked.reply.whole
    )


def _complete(outcome: Outcome | None) -> Outcome:
    """A reply that was stopped halfway from our side is none."""
    if outcome is None or outcome.finish_reason not in ("stop", "length"):
        raise aborted()
    return outcome
