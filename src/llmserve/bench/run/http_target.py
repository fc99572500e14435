"""Any OpenAI endpoint as a target: what its client sees, as events of our own kind.

A server's queue cannot be seen from here: requests count as dispatched when they are sent, so
queue time is 0 and TTFT holds it all. A delivery counts as one token until `usage` says how many
there were in all, and of the prompt how many were cached, where the server says that.
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
from llmserve.core.events import EventBus, RejectReason
from llmserve.core.types import FinishReason, Request, Usage
from llmserve.engines.tokenizer import Tokenizer
from llmserve.scheduling.admission import Rejected
from llmserve.serving.publisher import Publisher

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
        self._publisher = Publisher(self.bus, clock)
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
        """The reply's own tokens are not known: its text, tokenized again, is near enough."""
        if self._tokenizer is None:
            text = f"{cast('Sent', request.payload).text}{reply.text}"
            counted = reply.prompt_tokens
            tokens = len(text.split()) if counted is None else counted + reply.tokens
            return Said(text=text, tokens=tokens)
        ids = (*request.prompt_ids, *self._tokenizer.encode(reply.text)[: reply.tokens])
        return Said(ids=ids, tokens=len(ids))

    async def aclose(self) -> None:
        """Its client, where nobody else closes it."""
        await self._client.aclose()

    async def reset_cache(self) -> None:
        """OpenAI's API has no way to ask: salted prompts must do."""

    def _submitted(self, request: Request) -> None:
        self._publisher.submitted(request)
        self._publisher.dispatched(request.id, request.arrival)

    def _delivered(self, request: Request, *, first: bool) -> None:
        now = self.clock.now()
        if first:
            self._publisher.first_token(request.id, now)
        self._publisher.emitted(request.id, now, 1)

    def _failed(self, request: Request, error: ReplyError) -> None:
        if (refusal := _refusal(error)) is not None:
            self._publisher.rejected(request, Rejected(refusal))
        elif isinstance(error, ReplyTimeout) or error.code == "request_timeout":
            self._ended(request, "timeout", self.clock.now())
        else:
            self._ended(request, "error", self.clock.now(), error=str(error))

    def _ended(
        self, request: Request, reason: FinishReason, t: float, reply: StreamedReply | None = None,
        error: str | None = None,
    ) -> None:  # fmt: skip
        usage, cached = Usage(len(request.prompt_ids), 0), None
        if reply is not None:
            counted = reply.prompt_tokens
            prompt = usage.prompt_tokens if counted is None else counted
            usage, cached = Usage(prompt, reply.tokens), reply.cached_tokens
        self._publisher.finished(request.id, reason, usage, error, t=t, cached_tokens=cached)


def _refusal(error: ReplyError) -> RejectReason | None:
    """The server's own reason; of one that gives none, 429 is its limit."""
    return _REASONS.get(error.code) or ("rate_limit" if error.status == 429 else None)
