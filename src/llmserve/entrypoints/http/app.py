"""The routes, put together. Every answer that is an error is OpenAI's error object."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from llmserve.engines.base import HasApi
from llmserve.entrypoints.http.auth import KeyGate
from llmserve.entrypoints.http.chat import ChatRoute
from llmserve.entrypoints.http.completions import CompletionRoute
from llmserve.entrypoints.http.cors import Cors, Origins
from llmserve.entrypoints.http.engine_api import EngineApi
from llmserve.entrypoints.http.errors import SERVING_ERRORS, ApiError, ClientGone, as_api_error
from llmserve.entrypoints.http.knobs import knob_routes
from llmserve.entrypoints.http.lifecycle import lifecycle_routes
from llmserve.entrypoints.http.models import model_routes
from llmserve.entrypoints.http.monitoring import watch_routes
from llmserve.entrypoints.http.not_served import not_served
from llmserve.entrypoints.http.openai_responses.route import ResponsesRoute
from llmserve.entrypoints.http.openapi.routes import description_routes
from llmserve.entrypoints.http.options import DEFAULTS, EndpointOptions
from llmserve.entrypoints.http.state import EndpointState
from llmserve.observe import Telemetry
from llmserve.serving.api_keys import Keyring
from llmserve.serving.service import Service

log = logging.getLogger(__name__)


class Application(Starlette):
    """Starlette's, where even an answer to a defect of ours can be read by a page of `origins`."""

    origins: Origins = ()
    direct: Mapping[str, ASGIApp] = {}
    """What answers POST at these paths by itself."""

    def build_middleware_stack(self) -> ASGIApp:
        stack = DirectRoutes(super().build_middleware_stack(), self.direct)
        return Cors(stack, self.origins) if self.origins else stack


class DirectRoutes:
    """ASGI middleware: POST at some paths goes to their routes past Starlette's own, whose router
    and two wrappers of `send` cost each request and each event of a stream."""

    def __init__(self, app: ASGIApp, routes: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._routes = routes

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        posted = scope["type"] == "http" and scope["method"] == "POST"
        app = self._routes.get(scope["path"], self._app) if posted else self._app
        return app(scope, receive, send)


def build_app(
    service: Service,
    telemetry: Telemetry,
    keyring: Keyring,
    options: EndpointOptions = DEFAULTS,
) -> Starlette:
    """The application of one session, for holders of a key on the ring."""
    served = EndpointState(service, options)
    generating: dict[str, ASGIApp] = {
        "/v1/chat/completions": ChatRoute(served),
        "/v1/completions": CompletionRoute(served),
        "/v1/responses": ResponsesRoute(served),
    }
    routes = [
        *[Route(path, route, methods=["POST"]) for path, route in generating.items()],
        *model_routes(served),
        *watch_routes(served, telemetry),
        *knob_routes(served),
        *lifecycle_routes(service.supervisor),
    ]
    app = Application(
        routes=[*routes, *description_routes(served, routes)],
        middleware=[
            Middleware(KeyGate, keyring),
            Middleware(EngineApi, service, served.cache, options.strict),
        ],
        exception_handlers={
            HTTPException: _http_error,
            ClientGone: _nobody,
            Exception: _defect,
            **dict.fromkeys(SERVING_ERRORS, _error),
        },
    )
    app.origins = options.origins
    own = service.engine.api_paths if isinstance(service.engine, HasApi) else {}
    app.direct = {
        path: KeyGate(route, keyring) for path, route in generating.items() if path not in own
    }
    app.router.redirect_slashes = False
    return app


async def _error(request: Request, error: Exception) -> Response:
    answer = as_api_error(error)
    return Response(answer.body, answer.status, answer.headers, "application/json")


async def _defect(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return await _error(request, error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405 and request.method == "OPTIONS":  # what it asks for is in `Allow`
        return Response(status_code=204, headers=error.headers)
    if error.status_code == 404 and (known := not_served(request.url.path)) is not None:
        return await _error(request, known)
    messages = {
        404: f"there is no {request.url.path} here",
        405: f"{request.method} is not for {request.url.path}",
    }
    answer = ApiError(
        error.status_code,
        messages.get(error.status_code, error.detail),
        code={404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code),
        headers=dict(error.headers or {}),
    )
    return await _error(request, answer)


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # is not sent: the client left
