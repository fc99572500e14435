"""GET /openapi.json and /docs: both without a key, for they say nothing of what is served."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from llmserve.engines.base import HasApi
from llmserve.entrypoints.http.openapi.document import EngineFields, document
from llmserve.entrypoints.http.openapi.page import HEADERS, page
from llmserve.entrypoints.http.state import EndpointState


def description_routes(served: EndpointState, others: Sequence[BaseRoute]) -> list[Route]:
    """others: the application's other routes, which are described together with these."""
    described = _Description(served)
    own = [
        Route("/openapi.json", described.machine, methods=["GET"]),
        Route("/docs", described.human, methods=["GET"]),
    ]
    described.routes = [*others, *own]
    return own


_NONE: EngineFields = {}


class _Description:
    def __init__(self, served: EndpointState) -> None:
        self._served = served
        self.routes: list[BaseRoute] = []
        self._made: tuple[EngineFields, bytes, str] | None = None

    async def machine(self, request: Request) -> Response:
        """This document."""
        return Response(self._texts()[1], media_type="application/json")

    async def human(self, request: Request) -> Response:
        """A page of this document."""
        return Response(self._texts()[2], 200, HEADERS, "text/html")

    def _texts(self) -> tuple[EngineFields, bytes, str]:
        """Made once for each application of the engine's: who asks needs no key, and made anew for
        each they would take the streams' time."""
        engine = self._served.service.engine
        own: EngineFields = engine.api_fields if isinstance(engine, HasApi) else _NONE
        if self._made is None or self._made[0] is not own:
            found = document(self.routes, own, strict=self._served.strict)
            self._made = own, msgspec.json.encode(found), page(found)
        return self._made
