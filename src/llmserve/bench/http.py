"""Any OpenAI endpoint as a target: what its client sees, told as events of our own kind.

A server's queue cannot be seen from here: requests count as dispatched when they are sent, so
queue time is 0 and TTFT holds it all. A delivery counts as one token until `usage` tells how many
there were in all.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

from llmserve.bench.prompts import make_prompt, make_text
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

    def __init__(
        self, client: AsyncOpenAI, model: str, clock: Clock, tokenizer: Tokenizer | None = None
    ) -> None:
        self.clock = clock
        self.bus = EventBus()
        self._client = client
        self._model = model
        self._tokenizer = tokenizer
        self._ids = itertools.count(1)

    def prepare(self, arrival: Arrival) -> Callable[[float], Request]:
        tokens, salt = arrival.prompt_tokens, arrival.salt
        ids = () if self._tokenizer is None else make_prompt(self._tokenizer, tokens, salt)
        text = make_text(tokens, salt) if self._tokenizer is None else None
        sampling = SamplingParams(max_tokens=arrival.max_tokens, temperature=0.0, ignore_eos=True)
        return lambda when: Request(
            id=f"http-{next(self._ids)}",
            prompt_ids=ids,
            sampling=sampling,
            arrival=when,
            tenant=arrival.tenant,
            priority=arrival.priority,
            payload=text,
        )

    async def send(self, request: Request) -> bool:
        import openai

        self._submitted(request)
        try:
            reason, tokens = await self._read(request)
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
            return reason in ("stop", "length")
        return False

    async def _read(self, request: Request) -> tuple[FinishReason, int]:
        """Read the stream to its end: why it ended, and how many tokens there were."""
        stream: Any = await self._client.completions.create(
            model=self._model,
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
        deliveries, exact = 0, None
        async with stream:
            async for chunk in stream:
                if chunk.usage is not None:
                    exact = chunk.usage.completion_tokens
                for choice in chunk.choices:
                    if choice.text:
                        deliveries += 1
                        self._delivered(request, first=deliveries == 1)
                    reason = choice.finish_reason or reason
        return reason, deliveries if exact is None else exact

    def _submitted(self, request: Request) -> None:
        self.bus.publish(
            Submitted(
                t=request.arrival,
                request_id=request.id,
                tenant=request.tenant,
                priority=request.priority,
                prompt_tokens=len(request.prompt_ids),
                max_tokens=request.sampling.max_tokens,
            )
        )
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
