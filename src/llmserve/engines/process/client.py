"""The kernel's client of one engine process: its pending answers, its requests, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

import msgspec

from llmserve.core.types import Chunk, ParamError, Request
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

    def __init__(self, turn: LoopTurn, deliver: Deliver) -> None:
        self.delivery = Delivery(deliver)
        self.finished = False
        self._turn = turn
        self._deltas: list[Delta] = []

    def put(self, delta: Delta) -> None:
        if delta.finish_reason is not None:
            self.finished = True
        if not self._deltas:
            self._turn.note(self._hand_on)
        self._deltas.append(delta)

    def fail(self, failure: Exception) -> None:
        """End with this failure; what came before is still sent first."""
        self.finished = True
        self._hand_on()
        self.delivery.fail(failure)

    def _hand_on(self) -> None:
        deltas, self._deltas = self._deltas, []
        if not deltas:
            return
        if (error := deltas[-1].error) is not None:
            param = deltas[-1].param
            self.delivery.fail(ParamError(param, error) if param else RequestFailed(error))
        else:
            self.delivery.give(_joined(deltas))


def _joined(deltas: list[Delta]) -> Chunk:
    last = deltas[-1]
    if len(deltas) == 1:
        text, token_ids, logprobs = last.text, last.token_ids, last.logprobs
    else:
        text = "".join(delta.text for delta in deltas)
        token_ids = tuple(token for delta in deltas for token in delta.token_ids)
        asked = last.logprobs is not None
        every = (one for delta in deltas for one in delta.logprobs or ())
        logprobs = tuple(every) if asked else None
    return Chunk(
        text=text,
        token_ids=token_ids,
        logprobs=logprobs,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        cached_tokens=deltas[0].cached_tokens,
        prompt_logprobs=deltas[0].prompt_logprobs,
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
        inbox = self._inboxes[request.id] = Inbox(self._turn, deliver)
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
                if message.record is not None:
                    self._sink(message.record)
                for delta in message.deltas:
                    inbox = self._inboxes.get(delta.id)
                    if inbox is not None:  # else it was aborted meanwhile
                        inbox.put(delta)
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
