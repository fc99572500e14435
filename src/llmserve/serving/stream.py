"""One request as its client sees it: chunks to iterate, and how it ended.

Lives on the loop's thread. What is buffered is bounded by the request's own max_tokens.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from llmserve.core.types import Chunk, Outcome, PromptLogprobs, Request, TokenLogprob, Usage
from llmserve.scheduling.admission import Rejected


class Refused(Exception):
    """The request was not served: 429 on arrival, 503 after waiting too long."""

    def __init__(self, rejected: Rejected) -> None:
        super().__init__(rejected.message or rejected.reason)
        self.rejected = rejected

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.rejected,)


class RequestTimeout(Exception):
    """`request_timeout_s` passed before the request was done."""


class Stream:
    """The chunks of one request: iterate once. Raises Refused, RequestTimeout or EngineError where
    there is no good end."""

    def __init__(self, request: Request, cancel: Callable[[], None]) -> None:
        self.request = request
        self.outcome: Outcome | None = None
        self._cancel = cancel
        self._chunks: deque[Chunk] = deque()
        self.raised: Exception | None = None
        """Why there was no good end, once that was raised to who iterates."""
        self._failure: Exception | None = None
        self._ended = False
        self._wanted: Callable[[], bool] = lambda: False
        self._on_end: Callable[[Exception | None], None] = lambda failure: None
        self._seen: Callable[[Chunk], None] | None = None
        self._news: Callable[[], None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: PromptLogprobs | None = None
        self._cached = 0
        self._first_token: float | None = None

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        while not self._chunks:
            if self._ended:
                self.raise_failure()
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._chunks.popleft()

    def ready(self) -> list[Chunk]:
        """All chunks that are here already, without waiting, in order."""
        chunks = list(self._chunks)
        self._chunks.clear()
        return chunks

    def listen(self, news: Callable[[], None] | None) -> None:
        """Call `news` with each chunk and with the end, instead of waiting for them: no task is
        woken. It must return at once; what there is, `ready` and `ended` say. None ends that."""
        self._news = news
        if news is not None and (self._chunks or self._ended):
            news()

    @property
    def ended(self) -> bool:
        """Whether no more chunks come than are ready."""
        return self._ended

    @property
    def failed(self) -> bool:
        """Whether it ended with something to raise."""
        return self._failure is not None

    def raise_failure(self) -> None:
        """Raise what iterating it to the end would raise, if anything."""
        if self._failure is not None:
            self.raised = self._failure
            raise self._failure

    async def collect(self) -> Outcome:
        """Read to the end. Cancelling this cancels the request."""
        try:
            async for _ in self:
                pass
        finally:
            self.cancel()
        assert self.outcome is not None  # set before the iteration ends
        return self.outcome

    def cancel(self) -> None:
        """Stop the work and free the slot, for the client is gone. Safe twice, and when done."""
        if not self._ended and not self._wanted():
            self._cancel()

    def share(
        self,
        wanted: Callable[[], bool],
        on_end: Callable[[Exception | None], None],
        seen: Callable[[Chunk], None] | None = None,
    ) -> None:
        """Share this work with others: while `wanted` says so, a client that leaves stops nothing.

        `on_end` is called once, with what iteration raises; `seen` with each chunk, ahead
        of who iterates.
        """
        self._wanted, self._on_end, self._seen = wanted, on_end, seen

    @property
    def begun(self) -> bool:
        """Whether a chunk has come."""
        return bool(self._text)

    @property
    def usage(self) -> Usage:
        return Usage(len(self.request.prompt_ids), len(self._tokens), self._cached)

    def put(self, chunk: Chunk, now: float) -> bool:
        """Deliver one chunk; True when it has the first token."""
        first = self._first_token is None and bool(chunk.token_ids)
        if first:
            self._first_token = now
        self._cached = max(self._cached, chunk.cached_tokens)
        self._text.append(chunk.text)
        self._tokens.extend(chunk.token_ids)
        if chunk.logprobs:
            self._logprobs.extend(chunk.logprobs)
        if chunk.prompt_logprobs is not None:
            self._prompt_logprobs = chunk.prompt_logprobs
        if self._seen is not None:
            self._seen(chunk)
        self._chunks.append(chunk)
        self._wake()
        return first

    def end(self, last: Chunk, now: float, failure: Exception | None = None) -> None:
        """Note that no more chunks come; `last` gives the reasons, `failure` is raised where it is
        iterated."""
        if self._ended:
            return
        self._ended = True
        self._failure = failure
        request, arrival = self.request, self.request.arrival
        self.outcome = Outcome(
            text="".join(self._text),
            token_ids=tuple(self._tokens),
            finish_reason=last.finish_reason or "error",
            usage=self.usage,
            stop_reason=last.stop_reason,
            logprobs=tuple(self._logprobs) if request.sampling.logprobs is not None else None,
            prompt_logprobs=self._prompt_logprobs,
            error=str(failure) if failure else None,
            ttft_s=None if self._first_token is None else self._first_token - arrival,
            e2e_s=now - arrival,
        )
        self._wake()
        self._on_end(failure)

    def _wake(self) -> None:
        if self._news is not None:
            self._news()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
