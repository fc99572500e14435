"""GET and PATCH /llmserve/knobs: the metadata of every control, and changes of values."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmserve.core.knobs import SPECS, Spec
from llmserve.entrypoints.http.asgi import json_response, read_json
from llmserve.entrypoints.http.objects import members
from llmserve.entrypoints.http.state import EndpointState


def knob_routes(served: EndpointState) -> list[Route]:
    knobs = _Knobs(served)
    return [Route("/llmserve/knobs", knobs.answer, methods=["GET", "PATCH"])]


class _Knobs:
    def __init__(self, served: EndpointState) -> None:
        self._served = served

    async def answer(self, request: Request) -> Response:
        return await self._change(request) if request.method == "PATCH" else self._read()

    def _read(self) -> Response:
        info, values = self._served.info, self._served.service.board.current.as_dict()
        return json_response(
            {
                "knobs": {
                    name: {
                        "value": values[name],
                        **_described(spec),
                        "ceiling": info.ceilings.get(name),
                        "disabled": info.unsupported.get(name),
                    }
                    for name, spec in SPECS.items()
                }
            }
        )

    async def _change(self, request: Request) -> Response:
        """All of the object's changes or, with 400, none. Returns once the engine has them.

        `"evict": true` among them is no knob: what runs above a lowered cap makes room at once.
        """
        raw = await read_json(request.scope, request.receive)
        changes = _changes(raw)
        evict = changes.pop("evict", False)
        change = self._served.service.set_knobs(changes, source="http", evict=evict)
        return json_response(await change)


def _changes(body: bytes) -> dict[str, Any]:
    return {name: _value(bytes(part)) for name, part in members(body).items()}


def _value(part: bytes) -> object:
    try:
        return msgspec.json.decode(part)
    except (ValueError, RecursionError):  # a number beyond any float: for the knob to refuse
        return part.decode(errors="replace")


def _described(spec: Spec) -> dict[str, Any]:
    fields = dataclasses.asdict(spec)
    del fields["name"], fields["read"]
    return fields
