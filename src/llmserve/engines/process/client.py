"""The kernel's client of one engine process: its pending answers, its requests, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

import msgspec

from llmserve.core.types import Chunk, ParamError, Request, joined
from llmserve.engines.base import Deliver, EngineError, RequestFailed, StepSink
from llmserve.engines.process.child import Child
from llmserve.engines.process.delivery import Delivery, LoopTurn
from llmserve.engines.process.messages import (
    Abort,
    Adopted,
    Busy,
    Delta,
    Failed,
    FromChild,
    Ready,
    Reformed,
    ResetCache,
    Retune,
    Stepped,
    SubmitRequest,
    Weigh,
    Weighed,
)


class Inbox:
    """Collects what came for one request in this turn of the loop, to send it as one chunk."""

    def __init__(self, deliver: Deliver) -> None:
        self.delivery = Delivery(deliver)
        self.finished = False
        self._chunks: list[Chunk] = []
        self._failure: Exception | None = None

    def put(self, chunk: Chunk) -> bool:
        """True with the first of this turn: then `hand_on` is to be called once it is over."""
        self._chunks.append(chunk)
        return len(self._chunks) == 1

    def end(self, delta: Delta) -> bool:
        """The last of its request, as `put`."""
        self.finished = True
        if delta.error is not None:
            named = delta.param and ParamError(delta.param, delta.error)
            self._failure = named or RequestFailed(delta.error)
        return self.put(_chunk(delta))

    def fail(self, failure: Exception) -> None:
        """End with this failure; what came before is still sent first."""
        self.finished = True
        self.hand_on()
        self.delivery.fail(failure)

    def hand_on(self) -> None:
        chunks, self._chunks = self._chunks, []
        if self._failure is not None:
            self.delivery.fail(self._failure)
        elif chunks:
            self.delivery.give(joined(chunks))


def _chunk(delta: Delta) -> Chunk:
    return Chunk(
        text=delta.text,
        token_ids=delta.token_ids,
        logprobs=delta.logprobs,
        finish_reason=delta.finish_reason,
        stop_reason=delta.stop_reason,
        cached_tokens=delta.cached_tokens,
        prompt_logprobs=delta.prompt_logprobs,
    )


class ProcessClient:
    """One child process, from start to end, and all that wait for it."""

    def __init__(
        self,
        engine: str,
        worker: str,
        sink: StepSink,
        environment: dict[str, str],
        reformed: Callable[[dict[str, str]], None] = lambda _: None,
    ) -> None:
        """engine: its name, for messages. worker: the module that the child runs. reformed: takes
        what changed of the details that `ready` has."""
        self.child = Child(worker, environment, self)
        self._engine = engine
        self.ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._sink = sink
        self._reformed = reformed
        self._inboxes: dict[str, Inbox] = {}
        self._turn = LoopTurn()
        self._asked: dict[int, asyncio.Future[int]] = {}
        self._cause: EngineError | None = None
        self.busy_with = ""
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(FromChild).decode
        self._burial: asyncio.Task[None] | None = None

    @property
    def over(self) -> bool:
        return self._cause is not None

    def say(self, message: msgspec.Struct) -> None:
        """Send one of `ToChild`, or the engine's own first message."""
        self.child.send(self._encode(message))

    async def ask(self, message: Retune | ResetCache | Weigh) -> int:
        self._refuse_when_over()
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._asked[message.number] = answer
        self.say(message)
        try:
            return await answer
        finally:
            del self._asked[message.number]

    def open(self, request: Request, deliver: Deliver) -> Inbox:
        self._refuse_when_over()
        if request.id in self._inboxes:
            raise ParamError("id", f"request {request.id!r} is already running")
        self.say(
            SubmitRequest(request.id, request.prompt_ids, request.sampling)
        )  # may raise: half a pair
        inbox = self._inboxes[request.id] = Inbox(deliver)
        return inbox

    def close(self, request_id: str) -> None:
        if not self._inboxes.pop(request_id).finished:
            self.say(Abort(request_id))

    async def stop(self) -> None:
        self._end(EngineError(f"the {self._engine} engine was stopped"))
        await self.child.stop()
        if self._burial is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._burial

    def child_said(self, frame: bytes) -> None:
        message = self._decode(frame)
        match message:
            case Stepped():
                self._stepped(message)
            case Adopted():
                self._answer(message.number, message.step)
            case Weighed():
                self._answer(message.number, message.device_bytes)
            case Busy():
                self.busy_with = message.what
            case Reformed():
                self._reformed(message.details)
            case Ready():
                self.ready.set_result(message)
            case Failed():
                self._end(EngineError(message.message))

    def _stepped(self, message: Stepped) -> None:
        """Once for each token: as little as can be."""
        if message.record is not None:
            self._sink(message.record)
        inboxes, note = self._inboxes, self._turn.note
        for request_id, text, token in zip(
            message.ids, message.texts, message.tokens, strict=True
        ):
            inbox = inboxes.get(request_id)  # none where it was aborted meanwhile
            if inbox is not None and inbox.put(Chunk(text=text, token_ids=(token,))):
                note(inbox.hand_on)
        for delta in message.deltas:
            if (inbox := inboxes.get(delta.id)) is not None:
                put = inbox.put(_chunk(delta)) if delta.finish_reason is None else inbox.end(delta)
                if put:
                    note(inbox.hand_on)

    def _answer(self, number: int, answer: int) -> None:
        asked = self._asked.get(number)
        if asked is not None and not asked.done():
            asked.set_result(answer)

    def child_ended(self) -> None:
        if not self.over:
            self._burial = asyncio.get_running_loop().create_task(self._bury())

    async def _bury(self) -> None:
        """Report to all that wait how it ended, in its own last words."""
        status = await self.child.exit_status()
        how = f"exit status {status}"
        if status < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-status).name
        words = self.child.last_lines()
        said = f"; its last lines were:\n{words}" if words else ""
        self._end(EngineError(f"the {self._engine} engine's process died ({how}){said}"))

    def _end(self, error: EngineError) -> None:
        if self.over:
            return
        self._cause = error
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()  # seen, for it may be that nobody waits for it any more
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(error)
        for inbox in self._inboxes.values():
            inbox.fail(error)

    def _refuse_when_over(self) -> None:
        if self._cause is not None:
            raise self._cause
