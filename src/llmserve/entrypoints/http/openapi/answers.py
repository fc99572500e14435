"""Answers as JSON Schemas: what each route's reply holds at least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

_WHOLE: Schema = {"type": "integer", "minimum": 0}
_TEXT: Schema = {"type": "string"}


def objects(**fields: Schema) -> Schema:
    """An object that has all of these fields, and may have more."""
    return {"type": "object", "properties": fields, "required": [*fields]}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


USAGE = objects(prompt_tokens=_WHOLE, completion_tokens=_WHOLE, total_tokens=_WHOLE)
ERROR = objects(
    error=objects(
        message={**_TEXT, "minLength": 1},
        type=_TEXT,
        param={"type": ["string", "null"], "description": "The field that it is about."},
        code={"type": ["string", "null"]},
    )
)
_ENDED: Schema = {"enum": ["stop", "length", "tool_calls", "content_filter", None]}
_MESSAGE = objects(role={"const": "assistant"}, content={"type": ["string", "null"]})
_HEAD: dict[str, Schema] = {"id": _TEXT, "created": _WHOLE, "model": _TEXT}
CHAT = objects(
    **_HEAD,
    object={"const": "chat.completion"},
    choices=_list(objects(index=_WHOLE, message=_MESSAGE, finish_reason=_ENDED)),
    usage=USAGE,
)
COMPLETION = objects(
    **_HEAD,
    object={"const": "text_completion"},
    choices=_list(objects(index=_WHOLE, text=_TEXT, finish_reason=_ENDED)),
    usage=USAGE,
)
_ROWS = objects(object={"const": "list"}, data=_list({"type": "object"}))
_MODEL = objects(id=_TEXT, object={"const": "model"}, created=_WHOLE, owned_by=_TEXT)
_STATE = objects(state=_TEXT, message=_TEXT)
_TOKENS = objects(
    count=_WHOLE,
    max_model_len=_WHOLE,
    tokens=_list(_WHOLE),
    token_strs={"type": ["array", "null"], "items": _TEXT},
)

ANSWERS: Mapping[str, Schema] = {
    "GET /v1/models": objects(object={"const": "list"}, data=_list(_MODEL)),
    "GET /v1/models/{id}": _MODEL,
    "POST /v1/chat/completions": CHAT,
    "POST /v1/completions": COMPLETION,
    "POST /tokenize": _TOKENS,
    "POST /detokenize": objects(prompt=_TEXT),
    "GET /health": objects(status={"const": "ready"}),
    "GET /llmserve/requests": _ROWS,
    "GET /llmserve/steps": _ROWS,
    "GET /llmserve/knobs": objects(knobs={"type": "object"}),
    "PATCH /llmserve/knobs": {"type": "object"},
    "POST /llmserve/sleep": _STATE,
    "POST /llmserve/wake": _STATE,
    "POST /llmserve/restart": _STATE,
}
"""Of 200 by method and path; any JSON object where a route is not here."""

STATUSES: Mapping[int, str] = {
    400: "Malformed, out of range, not supported, or too long for the model.",
    401: "No key, or a wrong one.",
    403: "A tenant's key where only the server's own leads.",
    404: "Another model, or another path.",
    405: "Another method.",
    408: "The body did not come in time.",
    413: "A body of too many bytes or values.",
    415: "A body that is not JSON.",
    429: "No room: Retry-After says when to return.",
    500: "A defect of the server.",
    503: "Not ready, or waited too long.",
    504: "Not done in time.",
}
BODILESS = (401, 403, 404, 405, 500, 503)
"""Statuses of routes that take no body."""
