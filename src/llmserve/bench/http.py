"""Any OpenAI endpoint as a target: what its client sees, told as events of our own kind.

A server's queue cannot be seen from here: requests count as dispatched when they are sent, so
queue time is 0 and TTFT holds it all. A delivery counts as one token until `usage` tells how many
there were in all.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args

from llmserve.bench.driver import Said
from llmserve.bench.prompts import prompt_of, text_of
from llmserve.bench.workload import Arrival
from llmserve.clock import Clock
from llmserve.core import FinishReason, Request, SamplingParams
from llmserve.engines import Tokenizer
from llmserve.events import (
    Dispatched,
    EventBus,
    Finished,
    FirstToken,
    Rejection,
    RejectReason,
    Submitted,
    TokensEmitted,
)

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI

_REASONS: dict[str, RejectReason] = {reason: reason for reason in get_args(RejectReason)}
_REASONS["context_length_exceeded"] = "too_long"


class HttpTarget:
    """With the model's `tokenizer` prompts are exact in tokens; without, about as many words.

    `client` does the connecting and knows the key; give it `max_retries=0`, or a retry hides a
    refusal in a latency. The caller closes it.
    """

    sees_cache = False

    def __init__(
        self,
        client: AsyncOpenAI,
        model: str,
        clock: Clock,
        tokenizer: Tokenizer | None = None,
        *,
        prompts: Mapping[int, tuple[int, ...]] | None = None,
    ) -> None:
        """prompts: made ahead, by the salts of their arrivals."""
        self.clock = clock
        self.bus = EventBus()
        self._client = client
        self.model = model
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._ids = itertools.count(1)

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
        sampling = SamplingParams(max_tokens=arrival.max_tokens, temperature=0.0, ignore_eos=True)
        return lambda when: Request(
            id=f"http-{next(self._ids)}",
            prompt_ids=ids,
            sampling=sampling,
            arrival=when,
            tenant=arrival.tenant,
            priority=arrival.priority,
            ttft_slo_ms=arrival.ttft_slo_ms,
            payload=text,
        )

    async def send(self, request: Request) -> Said | None:
        import openai

        self._submitted(request)
        try:
            reason, tokens, text = await self._read(request)
        except openai.APITimeoutError:
            self._ended(request, "timeout")
        except openai.APIError as error:
            if (refusal := _refusal(error)) is not None:
                self._refused(request, refusal)
            else:
                self._ended(request, "error", error=str(error))
        except asyncio.CancelledError:
            self._ended(request, "abort")
            raise
        else:
            self._ended(request, reason, tokens)
            return self._said(request, text, tokens) if reason in ("stop", "length") else None
        return None

    def _said(self, request: Request, reply: str, tokens: int) -> Said:
        """The reply's own tokens are not told: its text, tokenized again, is near enough."""
        if self._tokenizer is None:
            text = f"{request.payload}{reply}"
            return Said(text=text, tokens=len(text.split()))
        ids = (*request.prompt_ids, *self._tokenizer.encode(reply)[:tokens])
        return Said(ids=ids, tokens=len(ids))

    async def reset_cache(self) -> None:
        """OpenAI's API has no way to ask: salted prompts must do."""

    async def _read(self, request: Request) -> tuple[FinishReason, int, str]:
        """Read the stream to its end: why it ended, how many tokens there were, and its text."""
        stream: Any = await self._client.completions.create(
            model=self.model,
            prompt=request.payload if request.payload is not None else list(request.prompt_ids),
            max_tokens=request.sampling.max_tokens,
            temperature=0.0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={
                "ignore_eos": True,
                "priority": request.priority,
                "tenant": request.tenant,
            },
        )
        reason: FinishReason = "error"
        deliveries, exact, texts = 0, None, list[str]()
        async with stream:
            async for chunk in stream:
                if chunk.usage is not None:
                    exact = chunk.usage.completion_tokens
                for choice in chunk.choices:
                    if choice.text:
                        deliveries += 1
                        texts.append(choice.text)
                        self._delivered(request, first=deliveries == 1)
                    reason = choice.finish_reason or reason
        return reason, deliveries if exact is None else exact, "".join(texts)

    def _submitted(self, request: Request) -> None:
        self.bus.publish(Submitted.of(request))
        self.bus.publish(Dispatched(t=request.arrival, request_id=request.id))

    def _delivered(self, request: Request, *, first: bool) -> None:
        now = self.clock.now()
        if first:
            self.bus.publish(FirstToken(t=now, request_id=request.id))
        self.bus.publish(TokensEmitted(t=now, request_id=request.id, n=1))

    def _ended(
        self, request: Request, reason: FinishReason, tokens: int = 0, error: str | None = None
    ) -> None:
        self.bus.publish(
            Finished(
                t=self.clock.now(),
                request_id=request.id,
                reason=reason,
                prompt_tokens=len(request.prompt_ids),
                completion_tokens=tokens,
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


def _refusal(error: APIError) -> RejectReason | None:
    return _REASONS.get(error.code or "")
