"""The OpenAPI document of one application: every route that it has, in OpenAPI 3.1."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from starlette.routing import BaseRoute, Route

from llmserve import __version__
from llmserve.core.bounds import BOUNDS, LONGEST_TENANT
from llmserve.entrypoints.http import fields
from llmserve.entrypoints.http.auth import OPEN_PATHS
from llmserve.entrypoints.http.lifecycle import RestartBody, SleepBody
from llmserve.entrypoints.http.openapi.answers import ANSWERS, BODILESS, ERROR, STATUSES
from llmserve.entrypoints.http.openapi.bodies import body_schema, knobs_schema
from llmserve.entrypoints.http.openapi.values import EXAMPLES, SUMMARIES, Schema, number
from llmserve.entrypoints.http.route_fields import BODIES, IGNORED_HEADER, of_engine, of_route

EngineFields = Mapping[str, Mapping[str, Any]]

_ABOUT = (
    "OpenAI's API over one scheduler, with routes of our own to watch it and to turn its knobs. "
    "Errors are OpenAI's error object. A field that a route does not read is 400 by its name."
)
_STREAMING = "stream"
_LIFE: Mapping[str, type[msgspec.Struct]] = {
    "/llmserve/sleep": SleepBody, "/llmserve/restart": RestartBody,
}  # fmt: skip
_SENDER = [
    {
        "name": name, "in": "header", "schema": schema,
        "description": f"As {field} of the body, which goes first.",
    }
    for name, field, schema in (
        ("X-Tenant", "tenant", {"type": "string", "minLength": 1, "maxLength": LONGEST_TENANT}),
        ("X-Priority", "priority", number(BOUNDS["priority"])),
        ("X-TTFT-SLO-MS", "ttft_slo_ms", number(BOUNDS["ttft_slo_ms"])),
    )
]  # fmt: skip
_COUNT = {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}
_QUERIES = {
    "/llmserve/requests": {"limit": "So many rows, the newest last."},
    "/llmserve/steps": {
        "limit": "So many rows, the newest last.", "since": "Only those with a higher index.",
    },
}  # fmt: skip


def document(
    routes: Iterable[BaseRoute], engine: EngineFields | None = None, *, strict: bool = True
) -> dict[str, Any]:
    """engine: of an engine's own application the fields that its routes read, by their paths."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if isinstance(route, Route):
            path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
            for method in sorted((route.methods or set()) - {"HEAD"}):
                body = _body(method, path, engine or {}, strict)
                about = SUMMARIES.get(f"{method} {path}", "")
                paths.setdefault(path, {})[method.lower()] = _operation(method, path, body, about)
    for path in engine or {}:
        if path not in paths:
            body = _body("POST", path, engine or {}, strict)
            paths[path] = {"post": _operation("POST", path, body, "The engine's own.")}
    return {
        "openapi": "3.1.0",
        "info": {"title": "llmserve", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"header": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "schemas": {"Error": ERROR},
            "headers": {
                "Ignored": {
                    "schema": {"type": "string"},
                    "description": "Unknown fields, which a server that is not strict ignores.",
                }
            },
        },
    }


def _body(method: str, path: str, engine: EngineFields, strict: bool) -> Schema | None:
    """The schema of a request's body; None where there is none."""
    if method == "PATCH":
        return knobs_schema()
    if path in _LIFE:
        return body_schema(_LIFE[path], fields.of_struct(_LIFE[path]), strict=True)
    if path in engine:
        return body_schema(None, of_engine(path, engine[path]), strict=strict)
    return body_schema(BODIES[path], of_route(path), strict=strict) if path in BODIES else None


def _operation(method: str, path: str, body: Schema | None, about: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_"),
        "responses": _responses(method, path, body),
    }
    if about:
        operation["summary"] = about
    if path in OPEN_PATHS:
        operation["security"] = []
    if parameters := _parameters(path, body):
        operation["parameters"] = parameters
    if body is not None:
        content: dict[str, Any] = {"schema": body}
        if path in EXAMPLES:
            content["example"] = EXAMPLES[path]
        operation["requestBody"] = {
            "required": path not in _LIFE, "content": {"application/json": content},
        }  # fmt: skip
    return operation


def _parameters(path: str, body: Schema | None) -> list[dict[str, Any]]:
    named = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    queries = [
        {"name": name, "in": "query", "schema": _COUNT, "description": about}
        for name, about in _QUERIES.get(path, {}).items()
    ]
    return [*named, *queries, *(_SENDER if body and _streams(body) else ())]


def _responses(method: str, path: str, body: Schema | None) -> dict[str, Any]:
    answer: Schema = ANSWERS.get(f"{method} {path}", {"type": "object"})
    content: dict[str, Any] = {"application/json": {"schema": answer}}
    if path == "/metrics":
        content["text/plain"] = {"schema": {"type": "string"}}
    elif path == "/docs":
        content = {"text/html": {"schema": {"type": "string"}}}
    if body is not None and _streams(body):
        content["text/event-stream"] = {
            "schema": {"type": "string", "description": "`data:` events, the last of them [DONE]."}
        }
    found: dict[str, Any] = {"200": {"description": "As asked.", "content": content}}
    if body is not None and path in BODIES:
        found["200"]["headers"] = {IGNORED_HEADER: {"$ref": "#/components/headers/Ignored"}}
    queried = path in _QUERIES
    for status, about in STATUSES.items():
        if body is not None or status in BODILESS or (queried and status == 400):
            found[str(status)] = {
                "description": about,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            }
    return found


def _streams(body: Schema) -> bool:
    return _STREAMING in body["properties"]
