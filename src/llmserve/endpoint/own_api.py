"""An engine's own HTTP application in place of our routes, with our door in front of it.

Such an application begins its answer before it knows whether there will be one: status 200 leaves
ahead of the first token, and a refusal becomes an error inside a stream. So what it sends is held
back until its first request has got a chunk or a refusal, and a refusal is answered here, with its
own status. Who asks cannot be passed through it either: that travels in a context variable.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any, cast

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmserve.core import Chunk, Request, SamplingParams
from llmserve.endpoint.answers import Answer, read_json
from llmserve.endpoint.errors import SERVING_ERRORS, ClientGone, as_api_error, starting
from llmserve.endpoint.sender import Sender, sender
from llmserve.engines import HasApi
from llmserve.service import Service
from llmserve.stream import Stream

log = logging.getLogger(__name__)


class _Who(msgspec.Struct):
    priority: int | None = None
    tenant: str | None = None


class _Call:
    """One HTTP request: who asks, and what has become of it."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.decided = False
        """A chunk has come, or a refusal: what is sent from now on is the answer."""
        self.refusal: Exception | None = None
        """Or a later failure: it is a status of its own as long as nothing has been sent."""


_CALL: ContextVar[_Call] = ContextVar("llmserve_call")


class OwnApi:
    """ASGI middleware, behind the key. Passes on what the engine does not answer itself."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        paths: frozenset[str] = getattr(self._service.engine, "api_paths", frozenset())
        if scope["type"] != "http" or scope["path"] not in paths:
            await self._app(scope, receive, send)
            return
        try:
            await self._answer(scope, receive, send)
        except ClientGone:
            return
        except SERVING_ERRORS as error:
            await Answer(send).fail(as_api_error(error))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._service.ready:
            raise starting()
        body = await read_json(scope, receive) if scope["method"] == "POST" else b""
        who = _who(body)
        call = _Call(sender(scope, who.priority, who.tenant))
        engine = cast("HasApi", self._service.engine)
        app = await engine.api(self._submit)
        held = _Held(send, call)
        token = _CALL.set(call)
        try:
            await app(scope, _replay(body, receive), held)
        except SERVING_ERRORS:  # applications tell their client of an error and raise it as well
            if not held.begun:
                raise
        finally:
            _CALL.reset(token)

    def _submit(
        self,
        *,
        id: str,
        prompt_ids: tuple[int, ...],
        sampling: SamplingParams,
        priority: int | None,
        payload: object,
    ) -> _Submitted:
        call = _CALL.get()
        request = Request(
            id=self._service.new_id(id),  # clients choose ids, and may choose one twice
            prompt_ids=prompt_ids,
            sampling=sampling,
            arrival=self._service.clock.now(),
            priority=call.sender.priority if priority is None else priority,
            tenant=call.sender.tenant,
            payload=payload,
        )
        try:
            return _Submitted(self._service.submit(request), call)
        except SERVING_ERRORS as error:
            call.refusal = call.refusal or error
            raise


class _Submitted:
    """A Stream that tells its call when it is decided."""

    def __init__(self, stream: Stream, call: _Call) -> None:
        self._stream = stream
        self._call = call
        self.cancel = stream.cancel

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        try:
            async for chunk in self._stream:
                self._call.decided = True
                yield chunk
        except SERVING_ERRORS as error:
            self._call.refusal = self._call.refusal or error
            raise


class _Held:
    """The application's `send`: kept until the call is decided or the answer is complete."""

    def __init__(self, send: Send, call: _Call) -> None:
        self._send = send
        self._call = call
        self._kept: list[Message] | None = []
        self._refused = False

    @property
    def begun(self) -> bool:
        return self._refused or self._kept is None

    async def __call__(self, message: Message) -> None:
        if self._refused:
            return
        if self._kept is None:
            await self._send(message)
            return
        self._kept.append(message)
        if self._call.refusal is not None:
            self._refused = True
            await Answer(self._send).fail(as_api_error(self._call.refusal))
            return
        whole = message["type"] == "http.response.body" and not message.get("more_body", False)
        if self._call.decided or whole:
            kept, self._kept = self._kept, None
            for one in kept:
                await self._send(one)


def _who(body: bytes) -> _Who:
    """What is not there or not right is left to the application to complain of."""
    try:
        return msgspec.json.decode(body, type=_Who) if body else _Who()
    except msgspec.MsgspecError:
        return _Who()


def _replay(body: bytes, receive: Receive) -> Any:
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
