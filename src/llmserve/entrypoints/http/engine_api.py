"""An engine's own HTTP application in place of our routes, behind our admission control.

Such an application begins its answer before it knows whether there will be one: status 200 leaves
ahead of the first token, and a refusal becomes an error inside a stream. So what it sends is held
back until its first request has got a chunk or a refusal, and a refusal is answered here, with its
own status. The caller cannot be passed through it either: that travels in a context variable.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmserve.core.types import SamplingParams
from llmserve.engines.base import EngineError, HasApi, Repeatable
from llmserve.entrypoints.http.asgi import JsonAnswer, read_json
from llmserve.entrypoints.http.caller import Claims, sender
from llmserve.entrypoints.http.content_encoding import as_read
from llmserve.entrypoints.http.errors import (
    SERVING_ERRORS,
    ApiError,
    ClientGone,
    as_api_error,
    not_ready,
)
from llmserve.entrypoints.http.fields import Fields
from llmserve.entrypoints.http.forwarded import check_forwarded
from llmserve.entrypoints.http.held_response import ForwardedCall, HeldResponse
from llmserve.entrypoints.http.leaving import unless_gone
from llmserve.entrypoints.http.protocol import check_sequences, understood
from llmserve.entrypoints.http.response_cache import ReplyCache, asks_anew, looked
from llmserve.entrypoints.http.route_fields import check_fields, of_engine
from llmserve.serving.requests import Sender, make_request, read_param
from llmserve.serving.service import Service
from llmserve.serving.stream import Stream


class _Asked(NamedTuple):
    call: ForwardedCall
    sender: Sender
    own_id: bool
    """The client chose the request's id, and may choose the same one twice."""
    arrived: float
    anew: bool
    """Whether no cached reply will do."""


_ASKED: ContextVar[_Asked] = ContextVar("llmserve_asked")


class EngineApi:
    """ASGI middleware, behind the key. Passes on what the engine does not answer itself."""

    def __init__(
        self, app: ASGIApp, service: Service, cache: ReplyCache, strict: bool = True
    ) -> None:
        self._app = app
        self._strict = strict
        self._known: dict[str, Fields] = {}
        self._service = service
        self._cache = cache
        engine = service.engine
        self._engine = engine if isinstance(engine, HasApi) else None
        self._paths = {} if self._engine is None else self._engine.api_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        engine = self._engine
        method = "GET" if scope.get("method") == "HEAD" else scope.get("method")  # no body is sent
        if (
            engine is None
            or scope["type"] != "http"
            or self._paths.get(scope["path"], "") != method
        ):
            await self._app(scope, receive, send)
            return
        scope = {**scope, "method": method}
        try:
            await self._answer(engine, scope, receive, send)
        except ClientGone:
            return
        except SERVING_ERRORS as error:
            await JsonAnswer(send).fail(as_api_error(error))

    async def _answer(self, engine: HasApi, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = self._service.clock.now()
        if self._service.supervisor.state == "new":
            raise not_ready()
        posted = scope["method"] == "POST"
        context = self._service.engine.info.max_model_len
        body = await read_json(scope, receive, context) if posted else b""
        fields = _fields(body) if posted else {}
        choices = _choices(fields)
        who = sender(scope, understood(fields, Claims))
        own_id = any(name == b"x-request-id" for name, _ in scope["headers"])
        app = await self._application(engine, scope, receive)
        call = ForwardedCall(scope["path"], fields, context, choices)
        if posted:
            known = self._fields_of(engine, scope["path"])
            call.headers |= check_fields(body, known, strict=self._strict)
            check_forwarded(scope["path"], body, self._service.engine.info)
        held = HeldResponse(send, call)
        # vLLM reads a call of a tool out of a stream piece by piece, and a cached one is one piece
        anew = asks_anew(scope) or bool(fields.get("tools") and fields.get("stream"))
        token = _ASKED.set(_Asked(call, who, own_id, arrived, anew))
        try:
            await app(as_read(scope, body), _replay(body, receive), held)
        except SERVING_ERRORS:  # applications report an error to their client and raise it as well
            if not held.begun:
                raise
        finally:
            _ASKED.reset(token)

    def _fields_of(self, engine: HasApi, path: str) -> Fields:
        if path not in self._known:
            self._known[path] = of_engine(path, engine.api_fields[path])
        return self._known[path]

    async def _application(self, engine: HasApi, scope: Scope, receive: Receive) -> ASGIApp:
        """The engine's, waiting for one that is being restarted or sleeps while its client waits:
        ClientGone."""
        await self._up(scope, receive)
        try:
            return await engine.api(self._submit)
        except EngineError:  # it died while nobody looked
            self._service.supervisor.died()
            await self._up(scope, receive)
            return await engine.api(self._submit)

    async def _up(self, scope: Scope, receive: Receive) -> None:
        if not self._service.ready:
            await unless_gone(scope, receive, self._service.when_up())

    def _submit(
        self,
        *,
        id: str,
        prompt_ids: tuple[int, ...],
        sampling: SamplingParams,
        priority: int | None,
        payload: Repeatable,
    ) -> Stream:
        call, who, own_id, arrived, anew = _ASKED.get()
        if priority is not None:
            who = msgspec.structs.replace(who, priority=priority)
        request = make_request(
            self._service.new_id(id) if own_id else id,
            prompt_ids,
            sampling,
            arrival=arrived,
            sender=who,
            choices=call.choices,
            payload=payload,
        )
        try:
            stream, found = self._cache.submit(request, anew=anew)
        except SERVING_ERRORS as error:
            call.refused = call.refused or error
            raise
        looked(call.headers, found)
        call.choices = 0
        call.streams.append(stream)
        return stream


def _choices(fields: Mapping[str, object]) -> int:
    """How many sequences are asked for, within the bounds of our own routes, for each is a request
    of its own here; vLLM would take thousands of them."""
    n, prompt = fields.get("n"), fields.get("prompt")
    n = max(1, n) if isinstance(n, int) else 1  # of other sorts vLLM itself judges
    n = int(read_param("n", n))
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        n *= len(prompt)
        check_sequences(n)
    return n


def _fields(body: bytes) -> dict[str, Any]:
    """ApiError 400 where the body is no JSON object; vLLM would answer 500 to some of those."""
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise ApiError(400, "send a JSON object", code="invalid_json")
    return found


def _replay(body: bytes, receive: Receive) -> Any:
    reported = False

    async def again() -> Message:
        nonlocal reported
        if reported:
            return await receive()
        reported = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
