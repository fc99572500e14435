"""The playground: a prompt tried by hand, in so many copies, and a load at a chosen rate.

What a page asks for runs on the serving loop like any client's requests. What comes of it is kept
here until the outbox sends it, some times a second and never a message per token. Nothing of it
outlives its view: once every page that shows it has left or fallen silent, or the session ends.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from msgspec.structs import replace

from llmserve.bench.load.workload import Workload
from llmserve.bench.run.driver import Bench, ServiceTarget
from llmserve.core.types import ParamError, Request
from llmserve.core.validation import real, whole
from llmserve.core.validation import text as checked_text
from llmserve.dashboard.replies import Copy, PageState
from llmserve.engines.base import EngineError
from llmserve.serving.requests import make_request, request_of
from llmserve.serving.service import Service
from llmserve.serving.stream import Refused, RequestTimeout

log = logging.getLogger(__name__)

T = TypeVar("T")
LIMITS: Final = {"text": 20_000, "copies": 16, "max_tokens": 1024, "rate": 200.0, "load_s": 600.0}
"""Of one view: characters of a prompt, copies at once, tokens of a reply, requests/s of a load
and how long it goes on."""
LOAD_TENANT: Final = "load"
_OUTSTANDING = 500
_LONGEST = 128


class RuntimeLike(Protocol):
    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]: ...


@dataclass(frozen=True, slots=True)
class _Load:
    rate: float
    bench: Bench
    work: Future[Any]

    def as_json(self) -> dict[str, object]:
        done = self.bench.progress
        under_way = done.sent - done.good - done.failed
        return {
            "rate": self.rate, "sent": done.sent, "failed": done.failed, "under_way": under_way,
            "left_s": max(0, round(LIMITS["load_s"] - done.elapsed_s)),
        }  # fmt: skip


class Playground:
    """The playground of one view. All methods may be called from any thread."""

    def __init__(self, service: Service, runtime: RuntimeLike) -> None:
        self._service = service
        self._runtime = runtime
        self._lock = threading.Lock()
        self._closed = False
        self._number = 0
        self._copies: list[Copy] = []
        self._answering: Future[None] | None = None
        self._load: _Load | None = None
        self._words = ""

    def hear(self, content: Mapping[str, Any]) -> None:
        """Take what the page asks for; whatever is wrong with it ends in a sentence on the page."""
        try:
            match content.get("act"):
                case "send":
                    self.send(*(content.get(name) for name in ("text", "copies", "max_tokens")))
                case "stop":
                    self.stop()
                case "load":
                    self.start_load(content.get("rate"))
                case "unload":
                    self.stop_load()
                case act:
                    log.warning("the playground was asked for something unknown: %r", act)
        except (ValueError, RuntimeError) as error:
            self._say(f"not started: {error}")

    def send(self, text: Any, copies: Any, max_tokens: Any) -> None:
        """Ask the model, so many times at once; a run that is under way ends first.

        Raises ValueError beyond LIMITS, RuntimeError once the session has ended.
        """
        copies = whole("copies", copies, 1, LIMITS["copies"], exact=True)
        most = LIMITS["max_tokens"]
        max_tokens = whole("max_tokens", max_tokens, 1, most, "tokens", exact=True)
        text = checked_text("the prompt", text, int(LIMITS["text"]))
        self.stop()
        with self._lock:
            self._refuse_when_closed()
            self._number += 1
            self._copies = [Copy() for _ in range(copies)]
            self._words = ""
            self._answering = self._runtime.submit(
                self._answer(tuple(self._copies), text, max_tokens)
            )

    def stop(self) -> None:
        """End the run: its requests are cancelled and their slots free. Safe when none runs."""
        with self._lock:
            answering, self._answering = self._answering, None
            for copy in self._copies:
                copy.end("stopped")
        if answering is not None:
            answering.cancel()

    def start_load(self, rate: Any) -> None:
        """Send requests at random times, `rate` a second on average, until stopped or 10 minutes
        have passed; one that runs already ends first."""
        rate = real("rate", rate, 0.01, LIMITS["rate"], "requests/s", exact=True)
        self.stop_load()
        longest = max(2, min(_LONGEST, self._service.engine.info.max_model_len // 4))
        lengths = (max(1, longest // 8), longest)
        load = Workload(
            rate=rate, duration_s=LIMITS["load_s"], prompt_tokens=lengths, max_tokens=lengths,
            tenant=LOAD_TENANT, seed=secrets.randbits(32),
        )  # fmt: skip
        target = ServiceTarget(self._service, self._service.bus)
        bench = Bench(target, load, max_outstanding=_OUTSTANDING)
        with self._lock:
            self._refuse_when_closed()
            self._load = _Load(rate, bench, self._runtime.submit(bench.run()))
            self._words = ""

    def stop_load(self) -> None:
        """End the load and cancel what of it is under way. Safe when none runs."""
        with self._lock:
            load, self._load = self._load, None
        if load is not None:
            load.work.cancel()

    def abandon(self) -> None:
        """No page is left: end all that it began."""
        if self._answering is not None or self._load is not None:
            self.stop()
            self.stop_load()

    def close(self) -> None:
        """End it for good; what is asked for later is answered by a sentence."""
        with self._lock:
            self._closed = True
        self.abandon()

    def news(self, page: PageState | None) -> tuple[dict[str, object] | None, PageState]:
        """Return what a page in this state lacks, None where that is nothing.

        `page` None is a page that has nothing."""
        with self._lock:
            self._notice_end_of_load()
            load = None if self._load is None else self._load.as_json()
            known = page if page is not None and page.run == self._number else None
            copies = [
                copy.since(i, (0, 0, "") if known is None else known.copies[i])
                for i, copy in enumerate(self._copies)
            ]
            now = PageState(self._number, tuple(c.mark for c in self._copies), self._words, load)
        if page == now:
            return None, now
        content: dict[str, object] = {
            "run": now.run, "count": len(copies), "fresh": known is None, "words": now.words,
            "load": load, "copies": [copy for copy in copies if copy is not None],
        }  # fmt: skip
        if page is None:
            content["limits"] = LIMITS
        return content, now

    def _notice_end_of_load(self) -> None:
        if self._load is not None and self._load.work.done():
            error = self._load.work.exception()
            self._words = "the load has ended" if error is None else f"the load failed: {error}"
            self._load = None

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise RuntimeError("the session has ended")

    def _say(self, words: str) -> None:
        with self._lock:
            self._words = words

    async def _answer(self, copies: tuple[Copy, ...], text: str, max_tokens: int) -> None:
        try:
            first = request_of(self._service, text, {})
        except ParamError as error:
            self._end_all(copies, str(error))
            return
        left = self._service.engine.info.max_model_len - len(first.prompt_ids)
        sampling = replace(first.sampling, max_tokens=min(max_tokens, left))
        async with asyncio.TaskGroup() as group:
            for copy in copies:
                name = self._service.new_id("play")
                request = make_request(
                    name, first.prompt_ids, sampling, arrival=first.arrival
                )
                group.create_task(self._follow(copy, request))

    async def _follow(self, copy: Copy, request: Request) -> None:
        try:
            stream = self._service.submit(request)
            try:
                async for chunk in stream:
                    with self._lock:
                        copy.take(chunk, self._service.clock.now() - request.arrival)
            finally:
                stream.cancel()
            state: str = "done" if stream.outcome is None else stream.outcome.finish_reason
        except (Refused, RequestTimeout, EngineError) as error:
            state = str(error)
        self._end_all((copy,), state)

    def _end_all(self, copies: tuple[Copy, ...], state: str) -> None:
        with self._lock:
            for copy in copies:
                copy.end(state)
