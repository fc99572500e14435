"""POST /llmserve/sleep, /llmserve/wake and /llmserve/restart: the engine's life, for its owner."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmserve.core.validation import Bounds
from llmserve.engines.supervisor import EngineSupervisor
from llmserve.entrypoints.http import fields, protocol
from llmserve.entrypoints.http.asgi import json_response, read_json
from llmserve.entrypoints.http.errors import invalid

DRAIN = Bounds("drain_s", 0, 3600, "s", kind="real")
"""How long running requests may take to end."""


class SleepBody(msgspec.Struct):
    level: int = 1
    drain_s: float = 30.0


class RestartBody(msgspec.Struct):
    drain_s: float = 5.0


def lifecycle_routes(supervisor: EngineSupervisor) -> list[Route]:
    life = _Life(supervisor)
    return [
        Route("/llmserve/sleep", life.sleep, methods=["POST"]),
        Route("/llmserve/wake", life.wake, methods=["POST"]),
        Route("/llmserve/restart", life.restart, methods=["POST"]),
    ]


class _Life:
    """The handlers; each answers when it is done, with the sentence that a cell would show."""

    def __init__(self, supervisor: EngineSupervisor) -> None:
        self._supervisor = supervisor

    async def sleep(self, request: Request) -> Response:
        body = protocol.decode(await _body(request, SleepBody), SleepBody)
        return self._answer(await self._supervisor.sleep(body.level, _bounded(body.drain_s)))

    async def wake(self, request: Request) -> Response:
        return self._answer(await self._supervisor.wake())

    async def restart(self, request: Request) -> Response:
        body = protocol.decode(await _body(request, RestartBody), RestartBody)
        return self._answer(await self._supervisor.restart(_bounded(body.drain_s)))

    def _answer(self, sentence: str) -> Response:
        return json_response({"state": self._supervisor.state, "message": sentence})


async def _body(request: Request, kind: type[msgspec.Struct]) -> bytes:
    raw = await read_json(request.scope, request.receive) or b"{}"
    fields.check(raw, fields.of_struct(kind))
    return raw


def _bounded(seconds: float) -> float:
    try:
        return float(DRAIN.read(seconds))
    except ValueError as error:
        raise invalid("drain_s", error) from None
