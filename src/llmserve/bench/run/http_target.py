"""Any OpenAI endpoint as a target: what its client sees, told as events of our own kind.

A server's queue cannot be seen from here: requests count as dispatched when they are sent, so
queue time is 0 and TTFT holds it all. A delivery counts as one token until `usage` tells how many
there were in all, and of the prompt how many were cached, where the server tells that.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import cast, get_args

import msgspec

from llmserve.bench.load.prompts import prompt_of, text_of
from llmserve.bench.load.workload import Arrival
from llmserve.bench.run.client import Client, ReplyError, ReplyTimeout, StreamedReply
from llmserve.bench.run.driver import Said, maker
from llmserve.core.clock import Clock
from llmserve.core.events import (
    Dispatched,
    EventBus,
    Finished,
    FirstToken,
    Rejection,
    RejectReason,
    Submitted,
    TokensEmitted,
)
from llmserve.core.types import FinishReason, Request
from llmserve.engines.base import Tokenizer

_REASONS: dict[str, RejectReason] = {reason: reason for reason in get_args(RejectReason)}
_REASONS["context_length_exceeded"] = "too_long"


class Sent(msgspec.Struct, frozen=True):
    """A request as it goes out, made ahead."""

    text: str
    """Its prompt, where that is no list of tokens."""
    body: bytes


class HttpTarget:
    """With the model's `tokenizer` prompts are exact in tokens; without, about as many words.

    `client` does the connecting and knows the key. The caller closes it.
    """

    sees_cache = False

    def __init__(
        self,
        client: Client,
        model: str,
        clock: Clock,
        tokenizer: Tokenizer | None = None,
        *,
        prompts: Mapping[int, tuple[int, ...]] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """prompts: made ahead, by the salts of their arrivals. extra: fields of the body in place
        of ignore_eos, priority and tenant, for a server that refuses those; None takes one out."""
        self.clock = clock
        self.bus = EventBus()
        self._client = client
        self.model = model
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._extra = extra
        self._ids = itertools.count(1)

    @property
    def url(self) -> str:
        return self._client.url

    def prepare(
        self, arrival: Arrival, run_salt: int, said: Said | None = None
    ) -> Callable[[float], Request]:
        said = said or Said()
        ids: tuple[int, ...] = ()
        text: str | None = None
        if self._prompts is not None:
            ids = self._prompts[arrival.salt]
        elif self._tokenizer is not None:
            ids = prompt_of(self._tokenizer, arrival, run_salt, said.ids)
        else:
            text = text_of(arrival, run_salt, said.text)
        sent = Sent(text or "", self._body(arrival, ids if text is None else text))
        return maker(arrival, ids, lambda: f"http-{next(self._ids)}", sent)

    def _body(self, arrival: Arrival, prompt: tuple[int, ...] | str) -> bytes:
        extra = self._extra
        if extra is None:
            asked = {"priority": arrival.priority, "tenant": arrival.tenant}
            extra = {"ignore_eos": True, "ttft_slo_ms": arrival.ttft_slo_ms, **asked}
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": arrival.max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **extra,
        }
        return msgspec.json.encode({n: value for n, value in body.items() if value is not None})

    async def send(self, request: Request) -> Said | None:
        self._submitted(request)
        sent = cast("Sent", request.payload)
        deliveries = 0

        def delivered() -> None:
            nonlocal deliveries
            deliveries += 1
            self._delivered(request, first=deliveries == 1)

        try:
            reply = await self._client.complete(sent.body, delivered, self.clock.now)
        except ReplyError as error:
            self._failed(request, error)
            return None
        except asyncio.CancelledError:
            self._ended(request, "abort", self.clock.now())
            raise
        reason = cast("FinishReason", reply.reason)
        self._ended(request, reason, reply.ended, reply)
        return self._said(request, reply) if reason in ("stop", "length") else None

    def _said(self, request: Request, reply: StreamedReply) -> Said:
        """The reply's own tokens are not told: its text, tokenized again, is near enough."""
        if self._tokenizer is None:
            text = f"{cast('Sent', request.payload).text}{reply.text}"
            told = reply.prompt_tokens
            tokens = len(text.split()) if told is None else told + reply.tokens
            return Said(text=text, tokens=tokens)
        ids = (*request.prompt_ids, *self._tokenizer.encode(reply.text)[: reply.tokens])
        return Said(ids=ids, tokens=len(ids))

    async def aclose(self) -> None:
        """Its client, where nobody else closes it."""
        await self._client.aclose()

    async def reset_cache(self) -> None:
        """OpenAI's API has no way to ask: salted prompts must do."""

    def _submitted(self, request: Request) -> None:
        self.bus.publish(Submitted.of(request))
        self.bus.publish(Dispatched(t=request.arrival, request_id=request.id))

    def _delivered(self, request: Request, *, first: bool) -> None:
        now = self.clock.now()
        if first:
            self.bus.publish(FirstToken(t=now, request_id=request.id))
        self.bus.publish(TokensEmitted(t=now, request_id=request.id, n=1))

    def _failed(self, request: Request, error: ReplyError) -> None:
        if (refusal := _refusal(error)) is not None:
            self._refused(request, refusal)
        elif isinstance(error, ReplyTimeout) or error.code == "request_timeout":
            self._ended(request, "timeout", self.clock.now())
        else:
            self._ended(request, "error", self.clock.now(), error=str(error))

    def _ended(
        self, request: Request, reason: FinishReason, t: float, reply: StreamedReply | None = None,
        error: str | None = None,
    ) -> None:  # fmt: skip
        told = None if reply is None else reply.prompt_tokens
        self.bus.publish(
            Finished(
                t=t,
                request_id=request.id,
                reason=reason,
                prompt_tokens=len(request.prompt_ids) if told is None else told,
                completion_tokens=0 if reply is None else reply.tokens,
                cached_tokens=None if reply is None else reply.cached_tokens,
                error=error,
            )
        )

    def _refused(self, request: Request, reason: RejectReason) -> None:
        self.bus.publish(
            Rejection(
                t=self.clock.now(),
                request_id=request.id,
                tenant=request.tenant,
                priority=request.priority,
                reason=reason,
            )
        )


def _refusal(error: ReplyError) -> RejectReason | None:
    """The server's own reason; of one that tells none, 429 is its limit."""
    return _REASONS.get(error.code) or ("rate_limit" if error.status == 429 else None)
