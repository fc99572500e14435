"""Monitoring routes: health, metrics, requests and engine steps."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmserve.core.validation import mistyped
from llmserve.entrypoints.http.asgi import json_response
from llmserve.entrypoints.http.errors import ApiError, not_ready
from llmserve.entrypoints.http.state import EndpointState
from llmserve.observe import Telemetry

_DEFAULT_ROWS = 1000
_MOST_ROWS = 10_000


def watch_routes(served: EndpointState, telemetry: Telemetry) -> list[Route]:
    watch = _Watch(served, telemetry)
    return [
        Route("/health", watch.health, methods=["GET"]),
        Route("/metrics", watch.metrics, methods=["GET"]),
        Route("/llmserve/requests", watch.requests, methods=["GET"]),
        Route("/llmserve/steps", watch.steps, methods=["GET"]),
    ]


class _Watch:
    def __init__(self, served: EndpointState, telemetry: Telemetry) -> None:
        self._service = served.service
        self._telemetry = telemetry

    async def health(self, request: Request) -> Response:
        if not self._service.ready:
            raise not_ready(self._service.supervisor.state)
        return json_response({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Prometheus text, or with `Accept: application/json` the snapshot of the window."""
        accepted = [part.partition(";")[0].strip() for part in _accept(request).split(",")]
        if "application/json" in accepted:
            return json_response(self._telemetry.snapshot())
        exporter = self._telemetry.prometheus
        return Response(exporter.render(), headers={"content-type": exporter.content_type})

    async def requests(self, request: Request) -> Response:
        """?limit=: so many, the newest last."""
        rows = self._telemetry.requests.rows(_count(request, "limit", _DEFAULT_ROWS))
        return json_response({"object": "list", "data": rows})

    async def steps(self, request: Request) -> Response:
        """?limit=: so many, the newest last. ?since=: only those with a higher index."""
        limit = _count(request, "limit", _DEFAULT_ROWS)
        since = _count(request, "since", -1)
        records = self._telemetry.steps.records(None if since < 0 else since, limit)
        return json_response({"object": "list", "data": records})


def _accept(request: Request) -> str:
    return request.headers.get("accept", "").lower()


def _count(request: Request, name: str, default: int) -> int:
    given = request.query_params.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) < 16):
        raise ApiError(400, str(mistyped(name, "a whole number", given)), param=name)
    return min(int(given), _MOST_ROWS) if name == "limit" else int(given)
